"""A tiny labelled set of real video files: parts of the demo's clips, whose class is their clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

NAMES = ("hmdb51_climb", "hmdb51_punch", "surveillance_nofi020", "surveillance_nofi086")


def write_labelled(clips: Path, folder: Path, names: tuple[str, ...] = NAMES) -> tuple[Path, Path]:
    """Cut each clip in five: the middle part is held out, the other four are for training.

    Files lie in ``folder/<split>/<class>/``; returns the lists ``train.txt`` and ``val.txt``, with
    lines of path<TAB>class.
    """
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for name in names:
        with av.open(str(clips / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for part in range(5):
            split = "val" if part == 2 else "train"
            path = folder / split / name / f"{part}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_frames(path, frames[len(frames) * part // 5 : len(frames) * (part + 1) // 5])
            lines[split].append(f"{path}\t{name}")
    for split, rows in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return folder / "train.txt", folder / "val.txt"


def write_frames(path: Path, frames: list, rate: int = 25) -> None:
    """Encode (H, W, 3) uint8 frames as H.264."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
