"""vivavoce: speech language models from shared parts. The stable Python face; heavy imports happen on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# name -> module that holds it: imported on first access, so that `import vivavoce` stays instant.
_FACE = {
    "Audio": "vivavoce.audio",
    "read": "vivavoce.audio",
    "write": "vivavoce.audio",
    "load": "vivavoce.systems",
    "build": "vivavoce.systems",
    "load_tokenizer": "vivavoce.systems",
}
__all__ = ["Audio", "__version__", "build", "load", "load_tokenizer", "read", "write"]

if TYPE_CHECKING:
    from vivavoce.audio import Audio, read, write
    from vivavoce.systems import build, load, load_tokenizer


def __getattr__(name: str):
    if name in _FACE:
        return getattr(import_module(_FACE[name]), name)
    raise AttributeError(f"module 'vivavoce' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
