"""Other programs' checkpoints, seen as model folders of mlxldm (`view`, `look`), and written as such (`write`)."""

from .view import look, view
from .write import write

__all__ = ["look", "view", "write"]
