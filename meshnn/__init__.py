"""meshnn: devices in one home, lab or factory run neural networks together.

The public names are imported when they are first used, so that a command starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnn.caller import connect
    from meshnn.config import Config
    from meshnn.errors import MeshError

__version__ = "0.1.0"

__all__ = ["Config", "MeshError", "__version__", "connect"]

_HOMES = {"Config": "meshnn.config", "MeshError": "meshnn.errors", "connect": "meshnn.caller"}


def __getattr__(name: str) -> object:
    """A public name, from the module that it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
