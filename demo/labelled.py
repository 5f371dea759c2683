"""Labelled videos to probe an encoder with: textures that move in one of eight directions.

    python demo/labelled.py --out FOLDER [--seed N]

The clips are those of ``tats_fast.generated`` (task ``pan``), with textures and motions of their
own: no run trains on them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tats_fast.generated import SceneConfig, Scenes

ABOUT = (
    "The videos are generated: a random texture moves as a whole in one of eight directions. A "
    "single frame says nothing about the class; who sees the frames but not their order cannot "
    "tell a direction from its opposite, and is right half of the time at best."
)
FRAMES, SIDE, RATE = 8, 32, 25
BATCH = 80


def write_set(folder: Path, seed: int = 0, train: int = 480, test: int = 320) -> tuple[Path, Path]:
    """Write videos and the lists ``train.txt`` and ``test.txt`` (path, tab, class) into ``folder``.

    Args:
        train, test: number of videos, about as many of each class.

    Returns:
        the paths of the two lists.
    """
    lists = []
    for part, (name, count) in enumerate((("train", train), ("test", test))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        scenes = Scenes(SceneConfig(task="pan"), FRAMES, SIDE, seed=2 * seed + part)
        lines = [f"# {ABOUT}"]
        for first in range(0, count, BATCH):
            clips, labels, _ = scenes.batch(min(BATCH, count - first), first)
            for number, (clip, label) in enumerate(zip(clips.numpy(), labels, strict=True), first):
                kind = scenes.classes[label]
                path = f"{name}/{number:03d}_{kind}.mp4"
                write_video(folder / path, clip)
                lines.append(f"{path}\t{kind}")
        lists.append(folder / f"{name}.txt")
        lists[-1].write_text("\n".join(lines) + "\n")
    return lists[0], lists[1]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in write_set(args.out, args.seed):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
