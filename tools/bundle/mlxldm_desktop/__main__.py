"""The desktop app, or its worker."""

import sys

from mlxldm_app.__main__ import main

sys.exit(main())
