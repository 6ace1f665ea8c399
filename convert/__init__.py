"""Other programs' checkpoints, seen as model folders of mlxldm (`view`, `look`), and written as such (`write`); LoRAs
and textual inversions as what they change in a model (`adapter`)."""

from .beside import adapter, is_adapter, misfit
from .view import look, view
from .write import write

__all__ = ["adapter", "is_adapter", "look", "misfit", "view", "write"]
