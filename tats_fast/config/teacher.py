"""A frozen encoder whose features pretraining predicts beside pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tats_fast.config.checks import require
from tats_fast.config.options import Options, option


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Options):
    """A teacher's features as a second target (docs/pretraining.md)."""

    section: ClassVar[str] = "teacher."

    init_from: str | None = None
    """The frozen encoder: a folder of Transformers' ``VideoMAEModel``, a run, or whatever else
    ``train.init_from`` reads. Its tokens must be as large as this run's. None = pixels alone."""
    weight: float = option(1.0, above=0)
    """Weight of the features' error in the loss and in the reward."""
    pixels: float = option(1.0, at_least=0)
    """Weight of the pixels' error beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "pixels"):
            value = getattr(self, name)
            require(
                self.init_from is not None or value == 1.0,
                f"teacher.{name}",
                value,
                "has no meaning without a teacher; give teacher.init_from",
            )
