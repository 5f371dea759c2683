"""The picture of the method on the first page: ``python docs/pictures.py``, from a bundled clip.

A scheme: its probabilities are the clip's frame difference, where training would put the sampler's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tats_fast.data.video import load_clip

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "demo/clips/heldout/hmdb51_golf.mp4"
SIDE, PATCH, VISIBLE = 224, 16, 0.1
INK, SOFT, LEARNER, SAMPLER = "#1b1f24", "#59636e", "#1f6fd0", "#c45d00"


def main() -> None:
    """Write ``docs/images/method.png``."""
    frames = load_clip(str(CLIP), 16, 2, SIDE)
    first, second = frames[8].astype(float), frames[9].astype(float)
    cells = SIDE // PATCH
    energy = np.abs(second - first).mean(-1).reshape(cells, PATCH, cells, PATCH).mean((1, 3)) + 1
    chance = energy / energy.sum()
    generator = np.random.default_rng(0)
    # The largest of log p + Gumbel noise: a draw without replacement (docs/method.md).
    keys = np.log(chance) + generator.gumbel(size=chance.shape)
    seen = keys >= np.sort(keys, axis=None)[-round(VISIBLE * keys.size)]

    figure = pyplot.figure(figsize=(11, 4.1), dpi=150)
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set(xlim=(0, 11), ylim=(0, 4.1))
    axes.axis("off")
    for number in range(3):
        _picture(axes, frames[4 * number + 4], 0.25 + 0.14 * number, 1.0 + 0.14 * number)
    axes.text(1.1, 0.72, "clip, cut into space-time tokens", ha="center", color=SOFT, fontsize=9)
    shown = np.kron(seen, np.ones((PATCH, PATCH)))[..., None]
    _box(
        axes,
        2.75,
        2.55,
        2.1,
        1.15,
        SAMPLER,
        "token sampler",
        "trajectory attention,\nactor and value",
    )
    _picture(axes, pyplot.get_cmap("viridis")(chance / chance.max()), 5.35, 2.3, 1.25)
    axes.text(6.7, 2.85, "probability\nof each token", color=SOFT, fontsize=9, va="center")
    _picture(axes, (frames[8] * (0.12 + 0.88 * shown)).astype(np.uint8), 5.35, 0.45, 1.25)
    axes.text(5.97, 0.22, "5 to 15% stay visible", ha="center", color=SOFT, fontsize=9)
    _box(axes, 7.05, 0.62, 1.35, 0.9, LEARNER, "encoder", "visible tokens only")
    _box(axes, 8.8, 0.62, 1.95, 0.9, LEARNER, "decoder", "rebuilds the hidden ones")
    _box(
        axes, 8.8, 2.55, 1.95, 1.15, SAMPLER, "PPO", "reward of a token:\nhow badly it was rebuilt"
    )
    for start, end, colour in (
        ((1.95, 2.6), (2.75, 3.1), SAMPLER),
        ((4.85, 2.95), (5.33, 2.95), SAMPLER),
        ((5.97, 2.28), (5.97, 1.75), SAMPLER),
        ((1.95, 1.3), (5.31, 1.08), LEARNER),
        ((6.64, 1.07), (7.05, 1.07), LEARNER),
        ((8.4, 1.07), (8.8, 1.07), LEARNER),
        ((9.77, 1.52), (9.77, 2.55), SAMPLER),
    ):
        _arrow(axes, start, end, colour)
    axes.text(9.65, 2.03, "error of each token", ha="right", color=SOFT, fontsize=9, va="center")
    _arrow(axes, (8.8, 3.45), (4.85, 3.45), SAMPLER, bend=0.2)
    axes.text(7.9, 3.98, "updates the sampler", ha="center", color=SOFT, fontsize=9, va="center")
    figure.savefig(ROOT / "docs/images/method.png")


def _picture(
    axes: Any, picture: np.ndarray, left: float, bottom: float, size: float = 1.42
) -> None:
    extent = (left, left + size, bottom, bottom + size)
    axes.imshow(picture, extent=extent, zorder=2 + left, aspect="auto")
    cells = SIDE // PATCH
    for place in np.linspace(0, size, cells + 1):
        look = {"color": "white", "linewidth": 0.25, "alpha": 0.6, "zorder": 2 + left}
        axes.plot([left, left + size], [bottom + place] * 2, **look)
        axes.plot([left + place] * 2, [bottom, bottom + size], **look)


def _box(
    axes: Any, left: float, bottom: float, width: float, height: float, colour: str, *words: str
) -> None:
    shape = FancyBboxPatch(
        (left, bottom), width, height, "round,pad=0,rounding_size=0.08",
        facecolor=colour, alpha=0.12, edgecolor="none",
    )  # fmt: skip
    axes.add_patch(shape)
    title, text = words
    middle = left + width / 2
    axes.text(middle, bottom + height - 0.27, title, ha="center", va="center", color=colour,
              fontsize=11, fontweight="bold")  # fmt: skip
    axes.text(middle, bottom + (height - 0.4) / 2, text, ha="center", va="center", color=INK,
              fontsize=8.5)  # fmt: skip


def _arrow(axes: Any, start: tuple, end: tuple, colour: str, bend: float = 0.0) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 12, "color": colour, "linewidth": 1.4}
    axes.add_patch(
        FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", zorder=4, **look)
    )


if __name__ == "__main__":
    main()
