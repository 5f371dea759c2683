"""Videos whose class can only be read from motion: textures that move in one of eight ways.

    python demo/motion_clips.py --out FOLDER [--seed N]

A texture is a sum of plane waves of random direction, phase and colour, as many in every octave, so
its amplitude falls as 1/f like that of natural images. A frame renders the waves where the motion
has carried them: nothing is cropped from a picture, so no border can enter, and no pixel is
resampled.

Single frames of all classes have one and the same distribution: directions and phases are uniform,
and waves reach so far beyond both ends of the rendered band that zooming only ever replaces them by
their like. The opposite motion of the same texture shows the same frames in reverse. Who ignores
the order of frames can therefore tell four pairs of classes apart, and is right half of the time.

Legend: T frames of S x S pixels, K waves. Lengths in picture sides, x to the right, y down.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES = (
    *("left", "right", "up", "down"),
    *("zoom_in", "zoom_out", "clockwise", "counterclockwise"),
)
"""How the picture moves, each beside its opposite."""

ABOUT = "Generated: random textures that move in one of eight ways. A single frame tells nothing."

FRAMES, SIDE, RATE = 20, 96, 25
SPEED = (0.008, 0.024)
"""Sides per frame: 0.8 to 2.3 of 96 pixels. For zooms and turns at the middle of an edge, which is
half a side from the centre."""
BAND = (1.0, 6.0)
"""Cycles per side that are rendered; beyond, waves fade within an octave."""
REACH = 2 * math.exp(FRAMES * SPEED[1])
"""How far beyond ``BAND`` there are waves, as a factor: that octave and the strongest zoom."""
WAVES = 128


@dataclass(frozen=True)
class Texture:
    """Plane waves, as they are in the middle of the clip."""

    waves: np.ndarray
    """(K, 2) cycles per side along x and y."""
    phases: np.ndarray
    """(K,) radians at ``centre``."""
    colours: np.ndarray
    """(K, 3) amplitudes of red, green and blue, white = 1."""
    mean: np.ndarray
    """(3,) mean colour, white = 1."""
    centre: np.ndarray
    """(2,) of zooms and turns, from the middle of the picture."""


def random_texture(generator: np.random.Generator) -> Texture:
    """A texture with a mean colour, hues and a contrast of its own."""
    ends = np.log(BAND[0] / REACH), np.log(BAND[1] * REACH)
    length = np.exp(generator.uniform(*ends, WAVES))
    angle = generator.uniform(0, 2 * np.pi, WAVES)
    # Mostly light and dark, with two random hues.
    axes = np.stack([np.ones(3), *generator.normal(scale=0.5, size=(2, 3))])
    colours = generator.normal(size=(WAVES, 3)) @ axes
    # A wave of amplitude a has the variance a^2 / 2; this share of them is rendered, where the
    # squares of the weights of a fading octave sum to a third.
    share = np.log(BAND[1] / BAND[0] * 2 ** (2 / 3)) / (ends[1] - ends[0])
    colours *= generator.uniform(0.12, 0.2) / np.sqrt((colours**2).mean() * WAVES * share / 2)
    return Texture(
        waves=length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1),
        phases=generator.uniform(0, 2 * np.pi, WAVES),
        colours=colours,
        mean=generator.uniform(0.35, 0.65, 3),
        centre=generator.uniform(-0.15, 0.15, 2),
    )


def render(
    texture: Texture, label: str, speed: float, frames: int = FRAMES, side: int = SIDE
) -> np.ndarray:
    """``texture`` moving as ``label`` of ``CLASSES`` says: (T, S, S, 3) uint8 RGB.

    speed: sides per frame, as in ``SPEED``.
    """
    direction = 1 if CLASSES.index(label) % 2 else -1
    # Symmetric about the middle, so that the opposite motion is the same frames in reverse.
    progress = direction * speed * (np.arange(frames) - (frames - 1) / 2)
    shift, scale, turn = np.zeros((frames, 2)), np.ones(frames), np.zeros(frames)
    if label in ("left", "right"):
        shift[:, 0] = progress
    elif label in ("up", "down"):
        shift[:, 1] = progress
    elif label in ("zoom_in", "zoom_out"):
        scale = np.exp(-2 * progress)
    else:
        turn = -2 * progress  # with y down, growing angles turn clockwise
    # Moving points p -> s R p + b takes the picture f(p) to f(R' (p - b) / s): waves k to R k / s.
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    waves = np.einsum("ijt,kj->tki", rotation, texture.waves) / scale[:, None, None]
    weight = band_weight(np.linalg.norm(waves, axis=-1))
    seen = weight.any(axis=0)
    waves, weight = waves[:, seen], weight[:, seen]
    colours = texture.colours[seen] * weight[..., None]  # (T, K, 3)
    phases = texture.phases[seen] - 2 * np.pi * np.einsum("tki,ti->tk", waves, shift)
    grid = (np.arange(side) + 0.5) / side - 0.5
    x, y = (2 * np.pi * waves[..., i, None] * (grid - texture.centre[i]) for i in range(2))
    x, y = x.astype(np.float32), (y + phases[..., None]).astype(np.float32)  # (T, K, S)
    # cos(x + y) = cos y cos x - sin y sin x: per frame one product of two thin matrices.
    columns = np.concatenate([np.cos(x), np.sin(x)], axis=1)  # (T, 2K, S)
    rows = np.concatenate([np.cos(y), -np.sin(y)], axis=1)
    colours = np.concatenate([colours, colours], axis=1).astype(np.float32)
    rows = np.einsum("tkc,tkr->trck", colours, rows).reshape(frames, side * 3, -1)
    pixels = (rows @ columns).reshape(frames, side, 3, side).swapaxes(2, 3) + texture.mean
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8)


def band_weight(length: np.ndarray) -> np.ndarray:
    """Weight in [0, 1] of waves of ``length`` cycles per side: 1 in ``BAND``, 0 an octave away."""
    octaves = np.log2(np.maximum(BAND[0] / length, length / BAND[1]))
    return (1 - octaves).clip(0, 1)


def write_video(path: Path, clip: np.ndarray) -> None:
    """Encode (T, S, S, 3) uint8 RGB as H.264 mp4; the same clip always gives the same pixels."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "superfast", "threads": "1"}
        for image in clip:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


def write_set(folder: Path, seed: int = 0, train: int = 32, test: int = 16) -> tuple[Path, Path]:
    """Write videos and the lists ``train.txt`` and ``test.txt`` (path, tab, class) into ``folder``.

    Every video has a texture and a speed of its own, by ``seed``, list, class and number.

    Args:
        train, test: videos per class.

    Returns:
        the paths of the two lists.
    """
    lists = []
    for part, (name, count) in enumerate((("train", train), ("test", test))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        lines = [f"# {ABOUT}"]
        for number, label in ((n, label) for label in CLASSES for n in range(count)):
            generator = np.random.default_rng([seed, part, CLASSES.index(label), number])
            clip = render(random_texture(generator), label, generator.uniform(*SPEED))
            path = folder / name / f"{label}_{number:02d}.mp4"
            write_video(path, clip)
            lines.append(f"{path.relative_to(folder)}\t{label}")
        lists.append(folder / f"{name}.txt")
        lists[-1].write_text("\n".join(lines) + "\n")
    return lists[0], lists[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in write_set(args.out, args.seed):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
