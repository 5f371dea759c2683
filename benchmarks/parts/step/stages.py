"""Where a training step's time goes, and how much memory it takes, seen from outside.

The step is measured as it is: for one call its functions are wrapped with a clock, so that the
engine needs no timing code. Nothing here runs during timed steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parts.peak_memory import MIB, peak_growth
from tats_fast import kernels
from tats_fast.pretrain import step as step_module
from tats_fast.pretrain.step import Learner

OTHER = "other"
INNER = "inner_epochs"
STAGES = (
    *("data_wait", "patchify", "embed", "sampler_forward", "draw", "gather_encoder", "decoder"),
    *("loss", "backward", "optimizer", INNER, OTHER),
)
"""In the step's order. ``data_wait`` is None: clips lie on the device, there is no loader here.
``draw`` is policy, noise, order and split; ``loss`` the reconstruction error, the reward and PPO's
first loss; ``backward`` that of autoencoder and sampler together; ``optimizer`` both updates of the
first epoch; ``inner_epochs`` everything of PPO's epochs 2..K; ``other`` metrics and the rest."""


class StageClock:
    """Attributes all time between ``start`` and ``stop`` to exactly one stage.

    On a GPU the marks are events in the stream: they cost no synchronisation, and the time the
    device waits for the host counts for the stage it waits in.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stack = [OTHER]
        self._marks: list[tuple[str, Any]] = []

    def _mark(self, stage: str) -> None:
        """The time since the last mark was ``stage``'s."""
        if self._device.type == "cuda":
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((stage, now))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the enclosed time to ``name``; whatever runs inside PPO's further epochs is
        theirs."""
        self._mark(self._stack[-1])
        self._stack.append(INNER if self._stack[-1] == INNER else name)
        try:
            yield
        finally:
            self._mark(self._stack.pop())

    def measure(self, call: Callable[[], Any]) -> dict[str, float | None]:
        """Milliseconds of every stage of one call; they sum to its duration."""
        self._marks = []
        self._mark(OTHER)
        call()
        self._mark(OTHER)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        spent: dict[str, float | None] = dict.fromkeys(STAGES, 0.0)
        spent["data_wait"] = None
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            cuda = self._device.type == "cuda"
            spent[name] += before.elapsed_time(after) if cuda else 1e3 * (after - before)
        return spent


@contextlib.contextmanager
def instrumented(learner: Learner, clock: StageClock) -> Iterator[None]:
    """Let ``clock`` see the stages of this learner's steps."""
    mae, sampler = learner.runner.module, learner.sampler
    places: list[tuple[Any, str, str]] = [
        (step_module, "patchify", "patchify"),
        (step_module, "draw_order", "draw"),
        (step_module, "split_for_training", "draw"),
        (kernels, "policy_sample", "draw"),
        (step_module, "make_experience", "loss"),
        (step_module, "sampler_loss", "loss"),
        (step_module, "adamae_loss", "loss"),
        (step_module, "_update_sampler", "optimizer"),
        (step_module, "_further_epochs", INNER),
        (kernels, "masked_mse", "loss"),
        (mae.embed, "forward", "embed"),
        (mae, "encode", "gather_encoder"),
        (mae, "decode", "decoder"),
        (learner.runner, "backward", "backward"),
        (learner.runner, "step", "optimizer"),
    ]
    if sampler is not None:
        places.append((sampler, "forward", "sampler_forward"))
    with contextlib.ExitStack() as stack:
        for owner, name, stage in places:
            stack.enter_context(_wrapped(owner, name, stage, clock))
        yield


@contextlib.contextmanager
def _wrapped(owner: Any, name: str, stage: str, clock: StageClock) -> Iterator[None]:
    original = getattr(owner, name)
    own = name in vars(owner)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(stage):
            return original(*args, **kwargs)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def state_bytes(learner: Learner) -> int:
    """Bytes of parameters, buffers and optimizer state."""
    modules = [learner.runner.module, learner.sampler]
    optimizers = [learner.runner.optimizer, learner.sampler_optimizer]
    tensors = [
        tensor
        for module in modules
        if module is not None
        for tensor in (*module.parameters(), *module.buffers())
    ]
    tensors += [
        value
        for optimizer in optimizers
        if optimizer is not None
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in tensors)


def peak_memory_mb(call: Callable[[], Any], learner: Learner, device: torch.device) -> float | None:
    """Peak memory of one step in MiB: the learner's own state, and what the step adds to it.

    Several learners live in the process, so the level at rest is subtracted and this learner's
    state put back.
    """
    grown = peak_growth(call, device)
    return None if grown is None else (state_bytes(learner) + grown) / MIB
