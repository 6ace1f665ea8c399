"""Other programs' checkpoints, seen as model folders of mlxldm (`view`), and written as such (`write`)."""

from .view import view
from .write import write

__all__ = ["view", "write"]
