"""Training batches in order, prepared in the background, whatever the files hold.

Worker processes decode (or plan) one window at a time; a thread hands them out, lets DALI decode
what it can, and puts whole batches together. What fails is replaced by a clip of another listed
video, and never silently.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from tats_fast.config import ConfigError
from tats_fast.data.cutter import ClipConfig, ClipCutter, Encoded, Task
from tats_fast.data.lists import Video
from tats_fast.data.opening import BadFiles, DecodeError
from tats_fast.data.order import ClipKey, StreamBatches
from tats_fast.data.workers.pool import Lost, Workers

if TYPE_CHECKING:
    from tats_fast.data.dali import DaliDecoder

MAX_ATTEMPTS = 10
"""Videos tried for one window before the run stops."""
# Finished batches that wait for the trainer.
_READY = 2
# Seconds between two looks at whether the loader was closed.
_POLL = 0.5


@dataclass(frozen=True)
class ClipBatch:
    """Training clips: K crops of each of G decoded windows."""

    clips: torch.Tensor
    """(G*K, T, S, S, 3) uint8 RGB, the crops of a window in a row, on the loader's device."""
    keys: list[ClipKey]
    """Names of the G windows, also where another video stood in."""
    videos: list[int]
    """Positions in the list of the G windows' videos, or of those that stood in."""
    bad: BadFiles
    """Every file that failed on the way to these clips."""
    on_host: int = 0
    """Windows that went to PyAV although another decoder was asked for."""
    ready: torch.cuda.Event | None = None
    """Set where the clips are still being written on the device."""

    def wait(self) -> ClipBatch:
        """This batch, after later work on the device was made to wait for its clips."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.clips.device)
            stream.wait_event(self.ready)
            self.clips.record_stream(stream)
        return self


@dataclass
class _Open:
    """A batch in progress, and the state of each of its windows."""

    keys: list[ClipKey]
    first_row: int
    pending: int = 0
    videos: dict[int, int] = field(default_factory=dict)
    """By row; the last one tried."""
    planned: list[tuple[Task, Encoded]] = field(default_factory=list)
    decoded: dict[int, torch.Tensor] = field(default_factory=dict)
    """By row; the clips of the other decoder."""
    bad: list[tuple[int, int, tuple[str, str]]] = field(default_factory=list)


class ClipLoader:
    """One ``ClipBatch`` for each list of keys in ``batches``; to be iterated once.

    The clips depend neither on ``workers`` nor on what fails when, except for files that kill or
    outlast their process. Iterating raises ``DecodeError`` once ``MAX_ATTEMPTS`` videos in a row
    failed for one window.

    Args:
        cutter: has rows for several batches (``rows_needed``).
        workers: decoding processes; 0 decodes in this process.
        decoder: takes what the cutter plans for it.
        device: where the clips are wanted. A GPU gets them on a stream of their own, so that
            training goes on meanwhile (ViT-B, 64 clips: 154 MB).
    """

    def __init__(
        self,
        cutter: ClipCutter,
        batches: StreamBatches,
        workers: int,
        decoder: DaliDecoder | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.cutter = cutter
        self.batches = batches
        self.decoder = decoder
        gpu = device is not None and device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if gpu else None
        self.workers = workers
        self.replaced_workers = 0
        """Worker processes that died or hung so far."""
        self._lost: dict[str, str] = {}  # reason, by path of a file not to be tried again
        self._closed = threading.Event()
        self._ready: queue.Queue[ClipBatch | Exception | None] = queue.Queue(_READY)
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[ClipBatch]:
        # Twice the decoder's own limit: only a process that does not even notice is killed.
        limit = 2 * self.cutter.config.timeout_s
        pool = Workers(self.cutter, self.workers, limit) if self.workers else _Inline(self.cutter)
        # A new thread starts out on GPU 0: page-locked memory would open a context there.
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(target=self._produce, args=(pool, device), daemon=True)
        self._thread.start()
        try:
            while (batch := self._ready.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield batch.wait()
        finally:
            self.close()

    def close(self) -> None:
        """End the thread and the processes; no more batches come."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _produce(self, pool: Workers | _Inline, device: int | None) -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            with pool:
                for batch in self._in_order(pool):
                    self._put(batch)
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, batch: ClipBatch | Exception | None) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(batch, timeout=_POLL)
            except queue.Full:
                continue

    def _in_order(self, pool: Workers | _Inline) -> Iterator[ClipBatch]:
        source = iter(self.batches)
        free = deque(range(0, len(self.cutter.rows), self.batches.micro_batch))
        waiting: deque[_Open] = deque()
        tickets: dict[int | Task, tuple[_Open, Task]] = {}
        died: set[tuple[ClipKey, int]] = set()  # tasks whose process died once

        def submit(batch: _Open, task: Task) -> None:
            batch.videos[task.row] = self.cutter.index(task)
            reason = self._lost.get(self.cutter.path(task))
            if reason is not None:  # it would only cost the next process
                return settle(batch, task, reason)
            batch.pending += 1
            tickets[pool.submit(task)] = batch, task

        def settle(batch: _Open, task: Task, outcome: Encoded | Lost | str | None) -> None:
            path = self.cutter.path(task)
            if isinstance(outcome, Encoded):
                batch.planned.append((task, outcome))
            elif outcome is not None:
                reason = outcome
                if isinstance(outcome, Lost):
                    if outcome.died and (task.key, task.attempt) not in died:
                        # Once may be an accident, such as a lack of memory.
                        died.add((task.key, task.attempt))
                        return submit(batch, task)
                    self._lost[path] = reason = outcome.reason
                batch.bad.append((task.row, task.attempt, (path, reason)))
                if task.attempt + 1 == MAX_ATTEMPTS:
                    raise DecodeError(
                        path, f"{reason} (after {MAX_ATTEMPTS} failures in a row, giving up)"
                    )
                submit(batch, replace(task, attempt=task.attempt + 1, host=False))

        while not self._closed.is_set():
            while free and (keys := next(source, None)) is not None:
                batch = _Open(keys, free.popleft())
                waiting.append(batch)
                for number, key in enumerate(keys):
                    submit(batch, Task(key, batch.first_row + number))
            if not waiting:
                return
            batch = waiting[0]
            if not batch.pending and batch.planned:
                for task in self._decode(batch):
                    submit(batch, replace(task, host=True))
            if batch.pending:
                for ticket, outcome in pool.collect(_POLL):
                    owner, task = tickets.pop(ticket)
                    owner.pending -= 1
                    settle(owner, task, outcome)
                self.replaced_workers = pool.replaced
                continue
            waiting.popleft()
            done = self._finish(batch)
            free.append(batch.first_row)
            yield done

    def _decode(self, batch: _Open) -> list[Task]:
        """Decode what is planned for the other decoder; returns what it could not decode."""
        assert self.decoder is not None
        planned, batch.planned = batch.planned, []
        tasks = [task for task, _ in planned]
        clips = self.decoder.decode([plan for _, plan in planned])
        decoded = {task.row: clip for task, clip in zip(tasks, clips, strict=True)}
        batch.decoded |= {row: clip for row, clip in decoded.items() if clip is not None}
        return [task for task in tasks if decoded[task.row] is None]

    def _finish(self, batch: _Open) -> ClipBatch:
        """Put the windows together in memory of their own, so that the rows are free again."""
        host = torch.from_numpy(self.cutter.rows[batch.first_row :][: len(batch.keys)])
        bad = [entry for _, _, entry in sorted(batch.bad)]
        videos = [batch.videos[batch.first_row + number] for number in range(len(batch.keys))]
        decoder = self.decoder
        if decoder is None:
            pinned, ready = self._copies is not None, None
            clips = torch.empty(host.shape, dtype=host.dtype, pin_memory=pinned).copy_(host)
            if self._copies is not None:
                with torch.cuda.stream(self._copies):
                    clips = clips.to(self._copies.device, non_blocking=True)
                    ready = self._copies.record_event()
            return ClipBatch(clips.flatten(0, 1), batch.keys, videos, bad, ready=ready)
        with decoder.queue():
            clips = torch.empty(host.shape, dtype=host.dtype, device=decoder.device)
            for number, clip in enumerate(clips):
                clip.copy_(batch.decoded.get(batch.first_row + number, host[number]))
            ready = decoder.finished()
        on_host = len(batch.keys) - len(batch.decoded)
        return ClipBatch(clips.flatten(0, 1), batch.keys, videos, bad, on_host, ready)


class _Inline:
    """The calls of ``Workers`` without processes."""

    replaced = 0

    def __init__(self, cutter: ClipCutter) -> None:
        self._cutter = cutter
        self._queue: deque[Task] = deque()

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def submit(self, task: Task) -> Task:
        self._queue.append(task)
        return task

    def collect(self, _wait: float) -> list[tuple[Task, Encoded | str | None]]:
        task = self._queue.popleft()
        return [(task, self._cutter(task))]


def rows_needed(windows: int, workers: int) -> int:
    """Rows for the batch being finished and enough behind it to keep all workers busy."""
    return windows * (1 + max(1, -(-2 * workers // windows)))


def make_loader(
    videos: Sequence[Video],
    config: ClipConfig,
    num_frames: int,
    image_size: int,
    seed: int,
    batches: StreamBatches,
    device: torch.device | str = "cpu",
) -> ClipLoader:
    """The loader of ``data.backend`` for one rank's batches of windows.

    Raises:
        ConfigError: the chosen backend cannot run here.
    """
    device = torch.device(device)
    decoder = None
    if resolved_backend(config.backend, device.type) == "dali":
        from tats_fast.data.dali import DaliDecoder

        decoder = DaliDecoder(device, image_size, config.workers)
    cutter = ClipCutter(
        videos,
        config,
        num_frames,
        image_size,
        seed,
        rows_needed(batches.micro_batch, config.workers),
        None if decoder is None else decoder.formats,
    )
    return ClipLoader(cutter, batches, config.workers, decoder, device)


def resolved_backend(backend: str, device_type: str) -> str:
    """``dali`` or ``pyav``: what ``data.backend`` means on a device.

    Raises:
        ConfigError: DALI is chosen and missing.
    """
    from tats_fast.data.dali import dali_problem

    if backend == "pyav" or (backend == "auto" and device_type != "cuda"):
        return "pyav"
    problem = dali_problem()
    if backend == "auto":
        return "pyav" if problem is not None else "dali"
    if problem is not None:
        raise ConfigError(f"data.backend=dali: {problem}")
    return backend
