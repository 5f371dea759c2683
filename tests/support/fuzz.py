"""Damaged videos by the thousand: none may end training, hang it, or fail it unknown to ``verify``.

    python tests/support/fuzz.py --count 10000

makes small files in every container from a bundled clip and damages them, each in a way that its
number decides. ``verify`` looks at each in full, then the loader draws windows from them, among as
many whole files, with PyAV and with DALI. Counted are runs that ended, files that hung, the peak
memory of processes, and files that training skipped although ``verify`` called them good.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import av
from project import ROOT

from tats_fast.config import DataConfig
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.dali import dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import make_loader
from tats_fast.data.order import StreamBatches
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.prepare.examine import examine

CLIP = ROOT / "demo" / "clips" / "train" / "hmdb51_punch.mp4"
FRAMES, STRIDE, SIZE = 4, 2, 32
"""Of the clips that training draws."""
PASSES, BATCH, WORKERS = 2, 10, 2
"""How often each file is drawn, windows of a batch, processes of the loader."""
# Seconds: of a clip while training, of a file in verify, of a run over a part of the files.
_CLIP, _FILE, _RUN = 10.0, 60.0, 300.0


@dataclass(frozen=True)
class Source:
    """A whole file to be damaged."""

    name: str
    codec: str
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (160, 120)
    count: int = 30


VPX = {"deadline": "realtime", "cpu-used": "8", "g": "10"}
SOURCES = (
    Source("h264.mp4", "libx264", options={"g": "10", "bf": "2"}),
    Source("faststart.mp4", "libx264", options={"g": "12"}, container={"movflags": "+faststart"}),
    Source(
        "fragments.mp4",
        "libx264",
        options={"g": "10"},
        container={"movflags": "frag_keyframe+empty_moov"},
    ),
    Source("h264.mkv", "libx264", options={"g": "250", "bf": "3"}),
    Source("h264.ts", "libx264", options={"x264-params": "keyint=10:open-gop=1:bframes=3"}),
    Source("mpeg4.avi", "mpeg4", options={"g": "12", "bf": "2", "qscale": "4"}),
    Source("mjpeg.avi", "mjpeg", "yuvj420p"),
    Source("mjpeg.mov", "mjpeg", "yuvj420p"),
    Source("mpeg4.3gp", "mpeg4", options={"g": "12"}),
    Source("vp8.webm", "libvpx", options=VPX),
    Source("vp9.webm", "libvpx-vp9", options=VPX),
    Source("vp8.ogv", "libvpx", options=VPX),
    Source("mpeg2.mpg", "mpeg2video", options={"g": "12", "bf": "2", "qscale": "4"}),
    Source("mpeg2.ts", "mpeg2video", options={"g": "12", "qscale": "4"}),
    Source("flash.flv", "flv", options={"g": "12", "qscale": "4"}),
    Source("windows.wmv", "wmv2", options={"g": "12", "qscale": "4"}),
    Source("palette.gif", "gif", "rgb8", count=12),
    Source("large.mp4", "libx264", options={"g": "6", "bf": "2"}, size=(1920, 1080), count=12),
    Source("large.avi", "mjpeg", "yuvj420p", size=(1920, 1080), count=6),
)


def write_sources(folder: Path) -> list[Path]:
    """The files of ``SOURCES``, with the first frames of a bundled clip."""
    with av.open(str(CLIP)) as clip:
        frames = list(clip.decode(video=0))[: max(source.count for source in SOURCES)]
    paths = []
    for source in SOURCES:
        path = folder / source.name
        with av.open(str(path), "w", options=source.container) as out:
            stream = out.add_stream(source.codec, rate=25, options=source.options)
            stream.width, stream.height = source.size
            stream.pix_fmt = source.pix_fmt
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(frames[: source.count]):
                image = frame.reformat(*source.size, format=source.pix_fmt)
                image.pts, image.time_base = number, Fraction(1, 25)
                out.mux(stream.encode(image))
            out.mux(stream.encode())
        paths.append(path)
    return paths


def _bits(raw: bytes, at: int, size: int, random: Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 8, 64))):
        changed[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _numbers(raw: bytes, at: int, size: int, random: Random) -> bytes:
    """Sizes, counts and times of a header that lie."""
    changed = bytearray(raw)
    for _ in range(random.choice((1, 4))):
        place = random.randrange(min(len(raw) - 4, 2048))
        place = random.choice((place, len(raw) - 4 - place))
        value = random.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, random.getrandbits(32)))
        changed[place : place + 4] = value.to_bytes(4, random.choice(("big", "little")))
    return bytes(changed)


KINDS: dict[str, Callable[[bytes, int, int, Random], bytes]] = {
    "bits flipped": _bits,
    "numbers replaced": _numbers,
    "noise": lambda raw, at, size, random: raw[:at] + random.randbytes(size) + raw[at + size :],
    "zeros": lambda raw, at, size, random: raw[:at] + bytes(size) + raw[at + size :],
    "part missing": lambda raw, at, size, random: raw[:at] + raw[at + size :],
    "part twice": lambda raw, at, size, random: raw[: at + size] + raw[at:],
    "noise inserted": lambda raw, at, size, random: raw[:at] + random.randbytes(size) + raw[at:],
    "parts swapped": lambda raw, at, size, random: (
        raw[: at // 2] + raw[at : at + size] + raw[at // 2 : at] + raw[at + size :]
    ),
    "cut off": lambda raw, at, size, random: raw[:at],
    "begins late": lambda raw, at, size, random: raw[at:],
}


def damaged(sources: Sequence[Path], number: int, seed: int) -> tuple[str, bytes]:
    """Name and content of a damaged file; every kind meets every source in turns."""
    random = Random(f"{seed} {number}")
    source = sources[number % len(sources)]
    kind = list(KINDS)[number // len(sources) % len(KINDS)]
    raw = source.read_bytes()
    size = random.choice((16, 188, 1024, 4096))
    at = random.randrange(1, max(2, len(raw) - size))
    return f"{number:06d} {kind} {source.name}", KINDS[kind](raw, at, size, random)


@dataclass
class Tally:
    """What happened."""

    files: int = 0
    bad: int = 0
    """Files that ``verify`` calls bad."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that training skipped at least once, by backend."""
    ended: list[str] = field(default_factory=list)
    """Runs that did not reach their end."""
    hung: list[str] = field(default_factory=list)
    """Files given up after their time."""
    died: list[str] = field(default_factory=list)
    """Files that killed a process reading them, which costs a clip."""
    unnamed: list[str] = field(default_factory=list)
    """Files that training skipped and ``verify`` calls good."""
    peak_mb: dict[str, int] = field(default_factory=dict)
    """Most memory of a process, by what it is."""

    def note(self, what: str, path: str, reason: str) -> None:
        """Count a file by why it failed."""
        line = f"{what}: {os.path.basename(path)}: {reason}"
        if reason.startswith("took longer"):
            self.hung.append(line)
        if reason.startswith("the process reading it died"):
            self.died.append(line)

    def saw(self, what: str, kilobytes: int) -> None:
        """Note the memory of a process."""
        self.peak_mb[what] = max(self.peak_mb.get(what, 0), kilobytes // 1024)

    @property
    def clean(self) -> bool:
        """Whether all promises were kept."""
        return not (self.ended or self.hung or self.unnamed)


def verify_all(paths: Sequence[str], tally: Tally) -> dict[str, str | None]:
    """Why each file is bad, or None, as ``verify --mode full`` says."""

    def look(path: str) -> tuple[str | None, int]:
        error = examine(path, "full", 0.5, 1).get("error")
        return error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    verdicts: dict[str, str | None] = {}
    with Workers(look, WORKERS, _FILE) as pool:
        for path, answer in pool.map(paths):
            if isinstance(answer, Lost):
                verdicts[path] = answer.reason
                tally.note("verify", path, answer.reason)
            else:
                verdicts[path], kilobytes = answer
                tally.saw("verify", kilobytes)
    return verdicts


def _train(answer: Any, videos: list[Video], backend: str, seed: int) -> None:
    """In a process of its own: what a run does with the files; sends reason by bad path, and the
    peak memory of this process and of its workers in kilobytes."""
    with open(os.devnull, "w") as nowhere:  # decoders write what they think of the files
        os.dup2(nowhere.fileno(), 2)
    common = {"backend": backend, "workers": WORKERS, "timeout_s": _CLIP}
    # Windows in one half of the runs, frames spread over the file in the other.
    if seed % 2:
        config = LabelledDataConfig(stride=0, **common)
    else:
        config = DataConfig(stride=STRIDE, **common)
    order = StreamBatches(len(videos), seed, BATCH, stop_sample=PASSES * len(videos))
    bad = {}
    for batch in make_loader(videos, config, FRAMES, SIZE, seed, order):
        bad.update(batch.bad)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, _CHILDREN)]
    answer.send((bad, *peaks))


_CHILDREN = resource.RUSAGE_CHILDREN


def train_all(
    paths: Sequence[str], whole: Sequence[str], backend: str, seed: int, tally: Tally
) -> dict[str, str] | None:
    """Reason by path of each file that training skipped, or None where the run ended."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    # As many whole files: a run ends by design where ten files in a row are bad.
    listed = [*paths, *(whole[number % len(whole)] for number in range(len(paths)))]
    videos = [Video(path) for path in listed]
    run = context.Process(target=_train, args=(there, videos, backend, seed))
    run.start()
    there.close()
    outcome = None
    with contextlib.suppress(EOFError):
        if here.poll(_RUN):
            outcome = here.recv()
    if outcome is None:
        run.join(1)  # it closes its end of the pipe before it is gone
    how = "did not end" if run.is_alive() else "ended"
    run.join(10 if outcome is not None else 0)
    run.kill()
    run.join()
    if outcome is None:
        names = f"{os.path.basename(paths[0])} to {os.path.basename(paths[-1])}"
        tally.ended.append(f"{backend} {how} with code {run.exitcode}: {names}")
        return None
    bad, own, workers = outcome
    tally.saw(f"{backend} run", own)
    tally.saw(f"{backend} worker", workers)
    return bad


def fuzz(count: int, first: int, seed: int, part: int = 100, says: bool = False) -> Tally:
    """Damage ``count`` files from number ``first`` on, ``part`` of them in each run."""
    tally = Tally()
    backends = ["pyav"] if dali_problem() is not None else ["pyav", "dali"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        sources = write_sources(Path(folder) / "whole")
        whole = [str(path) for path in sources]
        for start in range(first, first + count, part):
            paths = []
            for number in range(start, min(start + part, first + count)):
                name, content = damaged(sources, number, seed)
                paths.append(f"{folder}/{name}")
                Path(paths[-1]).write_bytes(content)
            verdicts = verify_all(paths, tally)
            tally.files += len(paths)
            tally.bad += sum(reason is not None for reason in verdicts.values())
            for backend in backends:
                skipped = train_all(paths, whole, backend, start // part, tally) or {}
                for path, reason in skipped.items():
                    tally.skipped[backend] += 1
                    tally.note(backend, path, reason)
                    if verdicts.get(path) is None:
                        name = os.path.basename(path)
                        tally.unnamed.append(f"{backend}: {name}: {reason}")
            for path in paths:
                os.remove(path)
            if says:
                print(f"{tally.files} files, {time.monotonic() - began:.0f} s", flush=True)
    return tally


def main() -> int:
    """0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first damaged file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, default=100, help="files of a run")
    options = parser.parse_args()
    tally = fuzz(options.count, options.first, options.seed, options.part, says=True)
    print(json.dumps(vars(tally), indent=2))
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
