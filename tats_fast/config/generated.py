"""Clips that are made and not read: what moves in them, and how much of a batch they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tats_fast.config.checks import require
from tats_fast.config.options import Options, option


@dataclass(frozen=True, kw_only=True)
class SceneConfig(Options):
    """What generated clips show (docs/data.md)."""

    section: ClassVar[str] = "generated."

    task: Literal["pan", "object", "spin", "relation", "digit"] = option(
        "object", "what the class is"
    )
    """What the class is: ``pan``, in which of 8 directions a texture moves as a whole; ``object``,
    in which of 8 directions an object moves over a background; ``spin``, how an object turns or
    grows on its place; ``relation``, how two objects move to each other; ``digit``, which digit
    moves, in a direction that says nothing."""
    area: float = option(
        0.08, "share of the picture that the object covers", at_least=0.02, at_most=0.5
    )
    """Share of the picture that the object covers, or both together, 0.02 to 0.5."""
    camera: Literal["still", "pan"] = option("still", "whether the background moves, too")
    """``pan`` moves everything with the background, in a direction that has nothing to do with the
    class; the object's class is its motion against the background."""
    distractors: int = option(0, "still look-alikes of the object", at_least=0, at_most=16)
    """Still look-alikes of the object that belong to the background."""
    noise: float = option(2.0, "deviation of the sensor's noise, of 255", at_least=0, at_most=64)
    """Standard deviation of the sensor's noise in every value, of 255."""
    textures: Literal["noise", "images", "both"] = option("noise", "what surfaces are made of")
    """What surfaces look like: random noise in several octaves, or pieces of the pictures that
    installed packages bring along, or either."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task == "pan":
            remedy = f"has no meaning for {self.section}task=pan, where everything moves alike"
            for name, value in (("camera", "still"), ("distractors", 0)):
                given = getattr(self, name)
                require(given == value, self.section + name, given, remedy)


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig(SceneConfig):
    """Generated clips among those of a pretraining run."""

    share: float = option(0.0, at_least=0, at_most=1)
    """Share of each batch's clips that are generated; 1 needs no ``data.train``, but
    ``train.steps``."""
    pans: float = option(0.0, at_least=0, at_most=1)
    """Share of the generated clips that show a pan instead of ``task``: where few tokens move, a
    model is slow to learn motion at all."""
