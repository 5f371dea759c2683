"""The clips of a study: what runs train on and what their encoders are asked about.

Legend: B clips of T frames of S x S pixels, N tokens, M labelled clips.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.data.eval_clips import load_eval_clips
from tats_fast.data.labels import label_numbers
from tats_fast.data.lists import Video, read_videos
from tats_fast.generated import SceneConfig, Scenes, moving_share

PROBE_SEED = 1_000_000
"""Of the clips that probes are trained on; those they are asked about have the next one."""
MARGIN = 1.25
"""Side of a listed video's decoded clips over that of the crops that runs see."""
WINDOWS = 4
"""Clips kept of each listed video."""
CHUNK = 64


class Batch(NamedTuple):
    """Training clips (B, T, S, S, 3) uint8, and the share of each token that moves, (B, N), where
    it is known."""

    clips: Tensor
    moving: Tensor | None


class Source(Protocol):
    """An endless stream of batches; the same for the same seed."""

    def batch(self, size: int, number: int) -> Batch:
        """Batch ``number``, a function of nothing else."""


@dataclass
class GeneratedClips:
    """The generator's scenes."""

    scenes: Scenes
    model: ModelConfig

    def batch(self, size: int, number: int) -> Batch:
        drawn = self.scenes.batch(size, number)
        return Batch(drawn.clips, token_share(drawn.moving, self.model))

    def labelled(self, size: int, number: int) -> tuple[Tensor, Tensor]:
        """The same with labels (B,) instead."""
        drawn = self.scenes.batch(size, number)
        return drawn.clips, drawn.labels


@dataclass
class ListedClips:
    """Listed videos, decoded once: random crops of a few windows each."""

    bank: Tensor
    """(M, T, S', S', 3) uint8 on the device."""
    side: int
    seed: int

    def batch(self, size: int, number: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        room = self.bank.shape[2] - self.side
        picks = torch.randint(len(self.bank), (size,), generator=generator)
        corners = torch.randint(room + 1, (2, size), generator=generator)
        picks, (top, left) = (part.to(self.bank.device) for part in (picks, corners))
        places = torch.arange(self.side, device=self.bank.device)
        frames = torch.arange(self.bank.shape[1], device=self.bank.device)
        rows, columns = top[:, None] + places, left[:, None] + places
        clips = self.bank[
            picks[:, None, None, None],
            frames[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return Batch(clips, None)


class LabelledClips(NamedTuple):
    """One part of a probe's clips."""

    clips: Tensor
    """(M, T, S, S, 3) uint8."""
    labels: Tensor
    """(M,) int64 on the CPU."""
    moving: Tensor | None
    """(M, N) share of each token that moves, where it is known."""


class ProbeSet(NamedTuple):
    """Labelled clips to learn from and others to be asked about."""

    train: LabelledClips
    test: LabelledClips
    classes: tuple[str, ...]


def token_share(moving: Tensor, model: ModelConfig) -> Tensor:
    """(B, T, S, S) bool -> (B, N) share of each token's pixels."""
    return moving_share(moving, model.tubelet_size, model.patch_size)


def make_source(
    settings: dict[str, Any], model: ModelConfig, seed: int, device: torch.device
) -> Source:
    """The stream of a study's ``data`` entry.

    Raises:
        ConfigError: a list that cannot be read, or settings that no scene has; one line.
    """
    settings = {k: v for k, v in settings.items() if k not in ("strategies", "ratios")}
    if "train" in settings:
        videos = read_videos(settings["train"], None, key="data.train")
        side = round(MARGIN * model.image_size)
        bank, _ = _decode(videos, WINDOWS, model, settings.get("stride", 1), side)
        return ListedClips(bank.to(device), model.image_size, seed)
    return GeneratedClips(_scenes(settings, model, seed, device), model)


def make_probe(settings: dict[str, Any], model: ModelConfig, device: torch.device) -> ProbeSet:
    """The clips of a study's ``probes`` entry."""
    settings = dict(settings)
    parts = settings.pop("train"), settings.pop("test")
    if all(isinstance(part, str) for part in parts):
        return _listed_probe(parts, settings, model, device)
    drawn = []
    for number, count in enumerate(parts):
        scenes = _scenes(settings, model, PROBE_SEED + number, device)
        batches = [scenes.batch(CHUNK, i) for i in range(-(-count // CHUNK))]
        clips, labels, moving = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
        drawn.append(LabelledClips(clips, labels.cpu(), token_share(moving, model)))
    return ProbeSet(*drawn, scenes.classes)


def _scenes(
    settings: dict[str, Any], model: ModelConfig, seed: int, device: torch.device
) -> Scenes:
    try:
        config = SceneConfig(**settings)
    except TypeError as error:
        raise ConfigError(f"{settings}: {error}") from None
    return Scenes(config, model.num_frames, model.image_size, seed, device)


def _listed_probe(
    parts: tuple[str, str], settings: dict[str, Any], model: ModelConfig, device: torch.device
) -> ProbeSet:
    lists = [read_videos(path, None, key="probes") for path in parts]
    *numbers, names = label_numbers(*lists, ("train", "test"))
    drawn = []
    for videos, labels in zip(lists, numbers, strict=True):
        clips, rows = _decode(
            videos, settings.get("clips", 1), model, settings.get("stride", 1), model.image_size
        )
        chosen = labels[rows]
        drawn.append(LabelledClips(clips.to(device), chosen, None))
    return ProbeSet(*drawn, tuple(names))


def _decode(
    videos: list[Video], clips: int, model: ModelConfig, stride: int, side: int
) -> tuple[Tensor, Tensor]:
    """``clips`` windows of each video, (M, T, side, side, 3) uint8, and their videos' numbers."""
    loaded = load_eval_clips(
        videos,
        clips * len(videos),
        model.num_frames,
        stride,
        side,
        workers=os.cpu_count() or 1,
        timeout=60,
    )
    if loaded.bad:
        raise ConfigError("; ".join(f"{path}: {reason}" for path, reason in loaded.bad[:3]))
    return loaded.clips, torch.tensor(loaded.indices)
