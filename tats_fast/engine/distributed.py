"""Processes of a run: who we are, and the few collectives the trainer needs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

from tats_fast.config import ConfigError, Failure

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long the processes wait for each other before the first step, and for what one does alone."""
ANSWER_WITHIN = 100.0
"""Seconds after which a process that keeps the others waiting within a step is given up."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device
    patient: dist.ProcessGroup | None = None
    """For waits on what one process does alone, such as saving; None = as for all others."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Elementwise mean over processes; no host sync."""
        if self.size > 1:
            dist.all_reduce(value)
            value = value / self.size
        return value

    def maximum(self, value: Tensor) -> Tensor:
        """Elementwise maximum over processes; no host sync."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over processes, in one collective.

        For the sampler, which is small (one block) and stays outside DDP and ZeRO, so that its
        several updates per step need no second engine.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([grad.flatten() for grad in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for grad, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            grad.copy_(part.view_as(grad))

    def gather(self, value: object, patient: bool = False) -> list:
        """The picklable ``value`` of every process, by rank.

        Args:
            patient: some may take long before they call it, as they save or evaluate.
        """
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value, group=self.patient if patient else None)
        return values

    def from_main(self, function: Callable[[], T]) -> T:
        """What ``function`` returns on the first process, on all; its ``ConfigError`` or
        ``Failure`` is raised on all too."""
        result = problem = None
        if self.is_main:
            try:
                result = function()
            except (ConfigError, Failure) as error:
                problem = error
        result, problem = self.gather((result, problem), patient=True)[0]
        if problem is not None:
            raise problem
        return result

    def barrier(self) -> None:
        """Wait for all processes, however long what they do alone takes."""
        if self.size > 1:
            dist.barrier(group=self.patient)

    def answer_within(self, seconds: float) -> None:
        """From now on a process that keeps the others waiting so long is given up, except where
        they are patient. Before the first step compiling and building take their time."""
        if self.size == 1:
            return
        for group in list(c10d._world.pg_map):
            if group is not self.patient:
                c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def pick_device(requested: str, local_rank: int = 0) -> torch.device:
    """The device of this process.

    Raises:
        ConfigError: cuda asked for where there is none.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: no CUDA GPU is visible here; use device=cpu")
    return torch.device("cuda", local_rank) if requested == "cuda" else torch.device("cpu")


def launched_processes() -> int:
    """How many processes the launcher started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_world(device: str, local_rank: int | None = None, group: bool = False) -> World:
    """Join the process group that a launcher (deepspeed, torchrun) prepared, or run alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        local_rank: what the launcher passed on the command line; None = from the environment.
        group: make a group also for one process: DeepSpeed wants one and would look for MPI.

    Raises:
        ConfigError: cuda asked for where there is none.
    """
    size = launched_processes()
    rank = int(os.environ.get("RANK", "0"))
    if local_rank is None:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size > 1 or group:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
        if not dist.is_initialized():
            backend = "nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None
    return World(rank, size, place, patient)


def lost_process(error: RuntimeError) -> str | None:
    """A sentence, where the error says that another process of the run is gone or silent."""
    text = str(error)
    if "gloo" not in text and "NCCL" not in text:
        return None
    if "imed out" in text or "timeout" in text:
        return "another process of this run does not answer (frozen, or cut off)"
    if "onnection" in text or "Broken pipe" in text or "aborted" in text:
        return "another process of this run has ended; its own message says why"
    return None


def end_process(code: int) -> None:
    """Exit at once if a process group is open; otherwise return.

    DeepSpeed keeps references to the group, and a gloo thread that outlives the interpreter's
    teardown now and then aborts a process whose work is done and saved. Nothing is left to tear
    down: the last collective of a run is its final checkpoint's barrier.
    """
    if dist.is_available() and dist.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        os._exit(code)


def draw_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the draws of one step, of one process where they differ; the same whenever the step
    is run again."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1
