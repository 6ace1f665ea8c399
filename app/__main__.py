"""`mlxldm-app`, or `python -m app` in a checkout."""

from __future__ import annotations

import sys


def main() -> int:
    """Say that there is no window yet; exit code 2, because only the person can do something else."""
    print('mlxldm: the desktop app is not in this version yet; use mlxldm generate "..." instead.', file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
