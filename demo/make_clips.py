"""Make ``demo/clips`` from the original videos: small, short, re-encoded H.264 (maintainers only).

    python demo/make_clips.py --surveillance FOLDER --hmdb51 FOLDER

``--surveillance`` holds the ``noFight`` folder of the surveillance fight dataset, ``--hmdb51`` the
class folders of HMDB51. demo/LICENSES.md gives the sources and their terms.
"""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path

from tats_fast.data.pyav import open_options

SHORT_SIDE = 128
MAX_SECONDS = 6
GOP = 12
CRF = "27"

# Held out by source: no camera, film or show of these is among the training clips.
HELDOUT = {
    *("surveillance_nofi001", "surveillance_nofi013", "surveillance_nofi030"),
    *("surveillance_nofi056", "surveillance_nofi101"),
    *("hmdb51_golf", "hmdb51_pour", "hmdb51_wave_truman"),
}


def short_name(path: Path) -> str:
    """An ASCII name: ``surveillance_<file>`` or ``hmdb51_<class>``."""
    if path.parent.name == "noFight":
        return f"surveillance_{path.stem}"
    # HMDB51 has several clips of a class; the first word of the source tells them apart.
    first = re.match(r"[A-Z]?[a-z]+|[A-Z]+", re.sub("[^A-Za-z]", "", path.stem)).group().lower()
    return f"hmdb51_{path.parent.name}" + (f"_{first}" if path.parent.name == "wave" else "")


def encode(source: Path, target: Path) -> int:
    """Write ``target`` as H.264 mp4 without sound; returns the number of frames."""
    import av

    with av.open(str(source), **open_options()) as reader, av.open(str(target), "w") as out:
        video = reader.streams.video[0]
        rate = Fraction(video.average_rate).limit_denominator(1001)
        scale = SHORT_SIDE / min(video.width, video.height)
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height = (
            2 * round(s * scale / 2) for s in (video.width, video.height)
        )
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CRF, "g": str(GOP), "preset": "veryslow", "threads": "1"}
        count = 0
        for frame in reader.decode(video):
            if count >= MAX_SECONDS * rate:
                break
            small = frame.reformat(
                stream.width, stream.height, "yuv420p", interpolation="BICUBIC", threads=1
            )
            # New timestamps: those of HMDB51 go backwards.
            small.pts, small.time_base = count, 1 / rate
            out.mux(stream.encode(small))
            count += 1
        out.mux(stream.encode())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--surveillance", type=Path, required=True, help="holds noFight/*.mp4")
    parser.add_argument("--hmdb51", type=Path, required=True, help="holds <class>/*.avi")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "clips")
    args = parser.parse_args()
    sources = [*args.surveillance.glob("noFight/*.mp4"), *args.hmdb51.glob("*/*.avi")]
    total = 0
    for source in sorted(sources):
        name = short_name(source)
        target = args.out / ("heldout" if name in HELDOUT else "train") / f"{name}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise SystemExit(f"{target} exists: remove it, or two sources share a name")
        frames = encode(source, target)
        total += target.stat().st_size
        print(f"{target.relative_to(args.out)}  {frames} frames  {target.stat().st_size} bytes")
    print(f"{len(sources)} clips, {total} bytes")


if __name__ == "__main__":
    main()
