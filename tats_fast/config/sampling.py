"""Every so many frames or so many per second: one of ``stride`` and ``fps``, wherever both are."""

from __future__ import annotations

from dataclasses import dataclass

from tats_fast.config.checks import require
from tats_fast.config.options import Options, option

STRIDE = 4
"""``stride`` where neither it nor ``fps`` is given."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """How a model's frames were chosen in its training; both None = not known."""

    stride: int | None = option(None, at_least=0)
    fps: float | None = option(None, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_sampling(self, None)


def settle_sampling(options: Options, default: int | None = STRIDE) -> None:
    """Give ``options.stride`` its default where neither it nor ``fps`` is given.

    default: None leaves it open, as where the training's own is to count.

    Raises:
        ConfigError: both are given.
    """
    section, stride, fps = options.section, options.stride, options.fps
    if fps is None and stride is None:
        object.__setattr__(options, "stride", default)
    remedy = f"set {section}stride=null, or leave {section}fps out"
    require(
        fps is None or stride is None,
        f"{section}fps",
        fps,
        f"frames are taken by time or every {section}stride={stride}; "
        + (remedy if section else "leave one of them out"),
    )
