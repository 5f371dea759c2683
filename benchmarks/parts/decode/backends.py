"""The decoders that decode.py compares: our backends, and other libraries in the same loader.

Every contender gets the same windows in the same order from the same number of processes. Ours also
draw the multi-scale crop that training uses; the others squash the whole frame to the square, which
is the least work they can be asked to do.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import numpy as np
import torch

from parts import bench
from tats_fast.config import DataConfig
from tats_fast.data.clip import ClipDraw, window_start
from tats_fast.data.cutter import ClipCutter, Task
from tats_fast.data.dali import DaliDecoder, dali_problem
from tats_fast.data.lists import Video
from tats_fast.data.loader import ClipLoader, rows_needed
from tats_fast.data.opening import DecodeError
from tats_fast.data.order import StreamBatches
from tats_fast.data.video import decode_crops

OURS = ("pyav", "dali", "dali-gpu")
OUTSIDE = {"decord": "decord", "torchcodec": "torchcodec.decoders"}
"""Name of the library, and what of it is imported."""
BACKENDS = (*OURS, *OUTSIDE)
FRAMES, SIZE, BATCH = 16, 224, 8
SEED = 0
LIMIT = 1.0
"""Mean difference in grey levels at which two of our backends no longer give the same clip."""
OUTSIDE_LIMIT = 4.0
"""The same for the others, which scale with other filters; another window differs by more."""


@lru_cache
def unavailable(backend: str) -> str | None:
    """Why ``backend`` cannot run here, in one line; None where it can."""
    if backend == "dali-gpu" and not torch.cuda.is_available():
        return "no CUDA GPU"
    if backend.startswith("dali"):
        return dali_problem()
    if backend == "pyav":
        return None
    try:
        import_module(OUTSIDE[backend])
    # A wheel whose native libraries do not fit raises whatever its loader raises.
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return f"does not import: {bench.first_line(cause)}"
    return None


class _Outside(ClipCutter):
    """A decoder of whole frames, squashed to the square, inside our loader."""

    def __call__(self, task: Task) -> str | None:
        draw = ClipDraw.of(self.seed, *task.key, task.attempt)
        try:
            self.rows[task.row][0] = self.read(self.path(task), draw.window)
        except Exception as error:
            return bench.first_line(error)
        return None

    def read(self, path: str, window: float) -> np.ndarray:
        """The clip at ``window``: (T, S, S, 3) uint8. Here by PyAV, for comparison."""
        clips = np.empty((1, FRAMES, SIZE, SIZE, 3), np.uint8)
        decode_crops(path, clips, self.config.stride, window, [lambda w, h: (0, 0, w, h)])
        return clips[0]

    def frames(self, total: int, window: float) -> list[int]:
        """Numbers of the frames that our backends would take."""
        stride = self.config.stride
        start = window_start(total, (FRAMES - 1) * stride + 1, window)
        return [min(start + index * stride, total - 1) for index in range(FRAMES)]


class _Decord(_Outside):
    """One thread per process, scaling as it decodes."""

    def read(self, path: str, window: float) -> np.ndarray:
        from decord import VideoReader

        reader = VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
        return reader.get_batch(self.frames(len(reader), window)).asnumpy()


class _Torchcodec(_Outside):
    """In the same way."""

    def read(self, path: str, window: float) -> np.ndarray:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        # "approximate" trusts the header instead of reading the file through first.
        settings = {"dimension_order": "NHWC", "seek_mode": "approximate"}
        decoder = VideoDecoder(path, transforms=[Resize((SIZE, SIZE))], **settings)
        return decoder.get_frames_at(self.frames(len(decoder), window)).data.numpy()


_CUTTERS = {"decord": _Decord, "torchcodec": _Torchcodec, "whole frame": _Outside}


@lru_cache
def _decoder(backend: str, threads: int) -> DaliDecoder | None:
    """One for all cases, as its first use on a GPU takes long."""
    if not backend.startswith("dali"):
        return None
    device = torch.device("cuda", 0) if backend == "dali-gpu" else torch.device("cpu")
    return DaliDecoder(device, SIZE, threads)


@dataclass(frozen=True)
class Taken:
    """What ``clips`` clips cost."""

    clips: int
    seconds: float
    cpu_seconds: float
    """Of this process and its workers, all threads."""


class Refused(Exception):
    """Why a backend is not timed on a case: it gives other clips, or handed windows to PyAV."""


class Contender:
    """One backend on one case."""

    def __init__(self, backend: str, videos: list[Video], stride: int, workers: int) -> None:
        self.backend, self.workers = backend, workers
        self._videos, self._decoder = videos, _decoder(backend, max(1, workers))
        self._config = DataConfig(stride=stride, workers=workers)

    def decode(self, clips: int) -> Taken:
        """Load whole batches of at least ``clips`` clips with new worker processes, on the clock.

        Raises:
            DecodeError: a file, or Refused: some windows went to PyAV.
        """
        began, cpu = time.perf_counter(), _cpu_seconds()
        done = sum(len(batch) for batch in self._batches(clips, self.workers))
        if self.backend == "dali-gpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        # The loop has closed the loader by now, so its processes are reaped and counted.
        return Taken(done, seconds, _cpu_seconds() - cpu)

    def first_clips(self) -> torch.Tensor:
        """A batch decoded without worker processes, so that these inherit what is learned about
        the files; on the CPU. Raises as ``decode`` does."""
        return torch.cat([batch.cpu() for batch in self._batches(BATCH, workers=0)])

    def _batches(self, clips: int, workers: int) -> Iterator[torch.Tensor]:
        formats = None if self._decoder is None else self._decoder.formats
        stop = -(-clips // BATCH) * BATCH
        shape = (FRAMES, SIZE, SEED, rows_needed(BATCH, workers))
        make_cutter = _CUTTERS.get(self.backend, ClipCutter)
        cutter = make_cutter(self._videos, self._config, *shape, formats)
        order = StreamBatches(len(self._videos), SEED, BATCH, stop_sample=stop)
        with closing(ClipLoader(cutter, order, workers, self._decoder)) as loader:
            for batch in loader:
                for path, reason in batch.bad:
                    raise DecodeError(path, reason)
                if batch.on_host:
                    raise Refused(f"not native: {batch.on_host} of {BATCH} windows went to PyAV")
                yield batch.clips


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean absolute difference in grey levels of the pair of clips that differ most."""
    apart = (one.float() - other.float()).abs().flatten(1).mean(1)
    return float(apart.max())


def _cpu_seconds() -> float:
    """User and system time of this process and of all its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
