"""Labelled clips that are made and not read, on any device: what moves in them is known exactly.

Nothing here reads or writes videos; that belongs to ``data`` and ``commands``.
"""

from tats_fast.config.generated import SceneConfig
from tats_fast.generated.scenes import SceneBatch, Scenes, moving_share

__all__ = ["SceneBatch", "SceneConfig", "Scenes", "moving_share"]
