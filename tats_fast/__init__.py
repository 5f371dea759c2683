"""TATS-Fast: masked video pretraining with a trajectory-aware, PPO-trained token sampler.

Importing the package touches no device, reads no environment and needs no optional dependency.
"""

from typing import Any

from tats_fast.version import __version__

_PUBLIC = ("create_model", "load_classifier", "load_encoder")
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """The public functions, imported (and torch with them) when first asked for."""
    if name in _PUBLIC:
        from tats_fast import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
