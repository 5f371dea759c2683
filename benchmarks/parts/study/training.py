"""Cells trained side by side: they see the same clips, and on a GPU each has a stream of its own,
on which its whole step is one graph launch, so that small models fill the device together.

Legend: B clips, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from parts.study.clips import Batch, GeneratedClips, Source
from parts.study.spec import SUPERVISED, Cell
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import lr_at, make_optimizer, set_lr
from tats_fast.engine.precision import autocast
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.patchify import normalised_video, patches_and_statistics
from tats_fast.pretrain.graph import make_step
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.plan import plan_step


class CellRun:
    """A cell in training."""

    def __init__(self, cell: Cell, device: torch.device) -> None:
        self.cell = cell
        self.config = cell.config
        self.learner = make_learner(self.config, World(0, 1, device))
        self.done = 0
        self.metrics: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._moving: Tensor | None = None
        self._step = make_step(self.learner)
        if cell.oracle is not None:
            self.learner.cut = self._cut_with_truth

    @property
    def encoder(self) -> VideoEncoder:
        """What is being trained."""
        return self.learner.mae.encoder

    def step(self, batch: Batch) -> None:
        """One optimizer step; does nothing after the cell's last."""
        if self.done >= self.cell.steps:
            return
        plan = plan_step(self.config, self.done, self.cell.steps)
        with self._queue(batch):
            if self.cell.oracle is not None:
                self._see_truth(batch.moving)
            self.metrics = self._step([batch.clips], plan)
        self.done += 1

    def wait(self) -> None:
        """Let the device's current stream wait for this run's."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _queue(self, batch: Batch) -> Any:
        """This run's stream, which nothing may take the memory of ``batch`` from."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(self._stream)
        return torch.cuda.stream(self._stream)

    def _see_truth(self, moving: Tensor) -> None:
        """Into memory that stays, because a graph reads it there."""
        if self._moving is None:
            self._moving = torch.empty_like(moving)
        self._moving.copy_(moving)

    def _cut_with_truth(
        self, clips: Tensor, tubelet_size: int, patch_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What ``Learner.cut`` gives, with the truth in the place of the frame difference."""
        patches, _, texture = patches_and_statistics(clips, tubelet_size, patch_size)
        return patches, 1 + (self.cell.oracle - 1) * self._moving, texture


def train_pack(
    runs: list[CellRun], source: Source, batch_size: int, stops: list[int]
) -> Iterator[tuple[int, float]]:
    """Train all runs on the same batches; yields the step and the seconds spent so far at each of
    ``stops``, with the device idle."""
    device = runs[0].learner.world.device
    start, elsewhere = time.perf_counter(), 0.0
    for number in range(max(stops)):
        batch = source.batch(batch_size, number)
        for run in runs:
            run.step(batch)
        if number + 1 in stops:
            for run in runs:
                run.wait()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            pause = time.perf_counter()
            yield number + 1, pause - start - elsewhere
            elsewhere += time.perf_counter() - pause


def fit_classifier(
    classifier: VideoClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    cell: Cell,
    device: torch.device,
) -> VideoClassifier:
    """Train with labels: AdamW at the study's rate, the trainer's schedule."""
    config, bf16 = cell.config, device.type == "cuda"
    optimizer = make_optimizer(classifier, config.optim)
    classifier.train()
    for step in range(steps):
        clips, labels = next(batches)
        set_lr(optimizer, lr_at(config.optim, step, steps, len(clips)))
        with autocast(device, bf16):
            logits = classifier(normalised_video(clips))
        nn.functional.cross_entropy(logits.float(), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return classifier.eval()


def supervised(cell: Cell, source: Source, device: torch.device) -> VideoClassifier:
    """The same encoder trained with the labels of the stream, for as many steps."""
    assert cell.strategy == SUPERVISED and isinstance(source, GeneratedClips)
    torch.manual_seed(cell.seed)
    classifier = VideoClassifier(cell.config.model, len(source.scenes.classes), device.type)
    size = cell.study.batch_size
    batches = (source.labelled(size, number) for number in range(cell.steps))
    return fit_classifier(classifier.to(device), batches, cell.steps, cell, device)
