"""``tats-fast make-benchmark motion``: generated clips as labelled video files, with their truth.

Legend: M videos, T frames of S x S pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tats_fast.config.generated import SceneConfig
from tats_fast.data.files import whole_folder, write_lines, writing
from tats_fast.data.pyav import require_pyav
from tats_fast.generated import Scenes
from tats_fast.prepare.options import MakeBenchmarkOptions

RATE = 25
"""Frames per second."""
_BATCH = 64


class Truth(NamedTuple):
    """What moves in the videos of a list, from the file beside it."""

    paths: list[str]
    """M paths as the list has them."""
    moving: np.ndarray
    """(M, T, S, S) bool: the pixel belongs to something that moves of itself."""


def make_motion_benchmark(options: MakeBenchmarkOptions) -> list[Path]:
    """Write videos, ``train.txt``, ``test.txt`` (path, tab, class), ``classes.txt``, and the truth
    ``train.npz`` and ``test.npz`` into ``options.out``: all of it or nothing; an empty folder that
    is there is filled once all is made. The same options give the same bytes.

    Training and test videos share no texture, shape or motion.

    Returns:
        the paths of the two lists.

    Raises:
        ConfigError: ``out`` is there and not an empty folder, or cannot be written; or what
            ``Scenes`` raises.
    """
    out = Path(options.out)
    with whole_folder(out) as folder:
        require_pyav()
        for half, (name, count) in enumerate(
            (("train", options.clips), ("test", options.test_clips))
        ):
            # An even and an odd seed: the two halves of what is not drawn (``Scenes``).
            scenes = Scenes(options, options.frames, options.side, 2 * options.seed + half)
            _write_list(folder, name, count, scenes, options)
        write_lines(folder / "classes.txt", scenes.classes)
    return [out / "train.txt", out / "test.txt"]


def read_truth(path: str | Path) -> Truth:
    """The truth that lies beside a list: ``train.npz`` of ``train.txt``."""
    with np.load(path) as file:
        moving = np.unpackbits(file["moving"], axis=-1, count=int(file["side"]))
        return Truth(file["paths"].tolist(), moving.astype(bool))


def write_video(path: Path, clip: np.ndarray, lossless: bool = False) -> None:
    """Encode (T, S, S, 3) uint8 RGB; one clip always gives the same file.

    Args:
        lossless: FFV1 for a ``path`` ending in .mkv, and not H.264 (4:2:0, CRF 18) in .mp4.
    """
    import av

    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream("ffv1" if lossless else "libx264", rate=RATE)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        stream.codec_context.thread_count = 1
        if not lossless:
            # Without looking ahead, which in x264 sometimes gives small frames other bytes.
            stream.options = {"crf": "18", "preset": "superfast", "tune": "zerolatency"}
        for image in clip:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


def _write_list(
    folder: Path, name: str, count: int, scenes: Scenes, options: MakeBenchmarkOptions
) -> None:
    """``count`` videos of each class, their list and their truth."""
    with writing(folder / name):
        (folder / name).mkdir(parents=True)
    suffix = "mkv" if options.lossless else "mp4"
    paths, labels, masks = [], [], []
    for label, number, clip, moving in _balanced(scenes, count):
        paths.append(f"{name}/{label}_{number:0{len(str(count - 1))}d}.{suffix}")
        labels.append(label)
        masks.append(np.packbits(moving, axis=-1))
        with writing(folder / paths[-1]):
            write_video(folder / paths[-1], clip, options.lossless)
    order = sorted(range(len(paths)), key=lambda row: paths[row])
    lines = [f"{paths[row]}\t{labels[row]}" for row in order]
    write_lines(folder / f"{name}.txt", [f"# {_about(options)}", *lines])
    moving = np.stack([masks[row] for row in order])
    truth = {"paths": [paths[row] for row in order], "moving": moving, "side": options.side}
    with writing(folder / f"{name}.npz"):
        np.savez_compressed(folder / f"{name}.npz", **truth)


def _balanced(scenes: Scenes, count: int) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Class, number in it, clip and what moves, of the first ``count`` clips of each class."""
    seen: Counter[str] = Counter()
    batch = 0
    while sum(seen.values()) < count * len(scenes.classes):
        made = scenes.batch(_BATCH, batch)
        batch += 1
        for clip, label, moving in zip(*(part.numpy() for part in made), strict=True):
            name = scenes.classes[label]
            if seen[name] < count:
                yield name, seen[name], clip, moving
                seen[name] += 1


def _about(options: MakeBenchmarkOptions) -> str:
    """What the videos are, for the first line of a list."""
    settings = " ".join(f"{f.name}={getattr(options, f.name)}" for f in fields(SceneConfig))
    return (
        f"generated by tats-fast make-benchmark motion, seed {options.seed}: {settings}; "
        f"{options.frames} frames (data.stride=1). The .npz beside this list has the pixels that "
        "move."
    )
