"""Where a training step's time goes, and how much memory it takes, seen from outside.

The step is measured as it is: for one call its functions are wrapped with a clock, so that the
package needs no timing code. Nothing here runs during timed steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from unittest import mock

import torch

from parts.bench import synchronize
from tats_fast import kernels
from tats_fast.pretrain import step
from tats_fast.pretrain.learner import Learner

OTHER = "other"
INNER = "inner_epochs"
STAGES = (
    *("patchify", "embed", "sampler_forward", "draw", "gather_encoder", "decoder", "loss"),
    *("backward", "optimizer", INNER, OTHER),
)
"""In the step's order. ``draw`` is policy, noise, order and split; ``loss`` errors and the credit
that the sampler gets for them; ``backward`` that of autoencoder and sampler together; ``optimizer``
both updates of the first epoch; ``inner_epochs`` everything of PPO's epochs 2..K; ``other`` metrics
and the rest."""


def stages_ms(call: Callable[[], Any], learner: Learner, device: torch.device) -> dict[str, float]:
    """Milliseconds of every stage of ``call``, a step of this learner; they sum to its duration.

    On a GPU the marks are events in the stream: they cost no synchronisation, and the time the
    device waits for the host counts for the stage it waits in.
    """
    gpu = device.type == "cuda"
    stack = [OTHER]
    marks: list[tuple[str, Any]] = []

    def mark() -> None:
        """The time since the last mark was that of the stage on top of the stack."""
        now: Any = torch.cuda.Event(enable_timing=True) if gpu else time.perf_counter()
        if gpu:
            now.record()
        marks.append((stack[-1], now))

    @contextlib.contextmanager
    def charge(stage: str) -> Iterator[None]:
        """To ``stage``; whatever runs inside PPO's further epochs is theirs."""
        mark()
        stack.append(INNER if stack[-1] == INNER else stage)
        try:
            yield
        finally:
            mark()
            stack.pop()

    mae = learner.mae
    places: list[tuple[Any, str, str]] = [
        (learner, "cut", "patchify"),
        (mae, "embed", "embed"),
        (step, "sample_policy", "draw"),
        (learner.sampler, "forward", "sampler_forward"),
        (kernels, "policy_sample", "draw"),
        (step, "draw", "draw"),
        (mae, "encode", "gather_encoder"),
        (mae, "decode_tokens", "decoder"),
        (mae, "predict", "decoder"),
        (kernels, "masked_mse", "loss"),
        (kernels, "change_error", "loss"),
        (step, "credit", "loss"),
        (learner.runner, "backward", "backward"),
        (step, "update_networks", "optimizer"),
        (step, "inner_epochs", INNER),
    ]
    with contextlib.ExitStack() as patches:
        for owner, name, stage in places:
            if owner is not None:  # there may be no sampler
                timed = charge(stage)(getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, timed))
        mark()
        call()
        mark()
    synchronize(device)
    spent = dict.fromkeys(STAGES, 0.0)
    for (_, before), (stage, after) in pairwise(marks):
        spent[stage] += before.elapsed_time(after) if gpu else 1e3 * (after - before)
    return spent
