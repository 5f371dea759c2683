"""Videos whose class can only be read from motion: textures that drift left, right, up or down.

    python demo/motion_clips.py --out FOLDER [--seed N]

A texture is a sum of plane waves of random direction, phase and colour, as many in every octave, so
its amplitude falls as 1/f like that of natural images. A frame renders the waves where the drift
has carried them: nothing is cropped from a picture, so no border can enter, and no pixel is
resampled. So these textures are of another kind than the panning ones of ``tats_fast.generated``,
which the demo trains on.

Phases are uniform, so single frames of all classes have one and the same distribution. The opposite
drift of the same texture shows the same frames in reverse: who ignores the order of frames can tell
horizontal from vertical by what blurs, and is right half of the time.

Legend: T frames of S x S pixels, K waves. Lengths in picture sides, x to the right, y down.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

DRIFTS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Direction (x, y) in which the picture moves, by class."""

ABOUT = (
    "The videos are generated: random textures that drift left, right, up or down. A single frame "
    "says nothing about the class; who sees the frames but not their order is right half of the "
    "time at best."
)

FRAMES, SIDE, RATE = 8, 32, 25
SPEED = (0.02, 0.05)
"""Sides per frame: 0.6 to 1.6 of 32 pixels."""
BAND = (1.0, 4.0)
"""Cycles per side. The finest wave moves by a fifth at most from frame to frame, so that nobody
takes it for the one before."""
WAVES = 64


@dataclass(frozen=True)
class Texture:
    """A sum of K plane waves around a mean colour."""

    waves: np.ndarray
    """(K, 2) cycles per side along x and y."""
    phases: np.ndarray
    """(K,) radians."""
    colours: np.ndarray
    """(K, 3) amplitudes of red, green and blue, white = 1."""
    mean: np.ndarray
    """(3,) white = 1."""


def random_texture(generator: np.random.Generator) -> Texture:
    """A texture with a mean colour, hues and a contrast of its own."""
    cycles = np.exp(generator.uniform(*np.log(BAND), WAVES))
    angle = generator.uniform(0, 2 * np.pi, WAVES)
    # Mostly light and dark, with two random hues.
    axes = np.stack([np.ones(3), *generator.normal(scale=0.5, size=(2, 3))])
    colours = generator.normal(size=(WAVES, 3)) @ axes
    # Waves of amplitude a have the variance a^2 / 2 each.
    colours *= generator.uniform(0.12, 0.2) / np.sqrt((colours**2).mean() * WAVES / 2)
    return Texture(
        waves=cycles[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1),
        phases=generator.uniform(0, 2 * np.pi, WAVES),
        colours=colours,
        mean=generator.uniform(0.35, 0.65, 3),
    )


def render(
    texture: Texture, label: str, speed: float, frames: int = FRAMES, side: int = SIDE
) -> np.ndarray:
    """``texture`` drifting as ``label`` of ``DRIFTS`` says: (T, S, S, 3) uint8 RGB.

    speed: sides per frame.
    """
    # Symmetric about the middle, so that the opposite drift is the same frames in reverse.
    time = np.arange(frames) - (frames - 1) / 2
    drift = texture.waves @ DRIFTS[label]  # cycles per side along the drift
    phases = texture.phases - 2 * np.pi * speed * time[:, None] * drift  # (T, K)
    grid = (np.arange(side) + 0.5) / side - 0.5
    x, y = (2 * np.pi * texture.waves[:, i, None] * grid for i in range(2))  # (K, S)
    y = y + phases[..., None]  # (T, K, S)
    # cos(x + y) = cos y cos x - sin y sin x: per frame and colour a product of two thin matrices.
    columns = np.concatenate([np.cos(x), np.sin(x)]).astype(np.float32)  # (2K, S)
    rows = np.concatenate([np.cos(y), -np.sin(y)], axis=1).astype(np.float32)  # (T, 2K, S)
    colours = np.concatenate([texture.colours] * 2).astype(np.float32)
    rows = np.einsum("kc,tkr->tcrk", colours, rows)
    # By torch, whose threads can be limited: NumPy's wait for each other on a busy machine.
    pixels = (torch.from_numpy(rows) @ torch.from_numpy(columns)).numpy()
    pixels = np.moveaxis(pixels, 1, -1) + texture.mean
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8)


def write_video(path: Path, clip: np.ndarray) -> None:
    """Encode (T, S, S, 3) uint8 RGB as H.264 mp4; one clip always gives the same file."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "14", "preset": "superfast"}
        for image in clip:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


def write_set(folder: Path, seed: int = 0, train: int = 80, test: int = 60) -> tuple[Path, Path]:
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
        for kind, label in enumerate(DRIFTS):
            for number in range(count):
                generator = np.random.default_rng([seed, part, kind, number])
                clip = render(random_texture(generator), label, generator.uniform(*SPEED))
                path = f"{name}/{label}_{number:02d}.mp4"
                write_video(folder / path, clip)
                lines.append(f"{path}\t{label}")
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
