"""TATS-Fast: masked video pretraining with a trajectory-aware, PPO-trained token sampler.

Importing the package touches no device, reads no environment and needs no optional dependency.
"""

from tats_fast.version import __version__

__all__ = ["__version__"]
