"""The clips of a study: what runs train on and what their encoders are asked about.

Legend: B clips of T frames of S x S pixels, N tokens, M labelled clips.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from parts.study.spec import list_content
from tats_fast.config import ConfigError, ModelConfig
from tats_fast.config.options import cores
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
    videos: Tensor | None = None
    """(M,) int64, of listed videos: which one a clip is of."""


class ProbeSet(NamedTuple):
    """Labelled clips to learn from and others to be asked about."""

    train: LabelledClips
    test: LabelledClips
    classes: tuple[str, ...]


def token_share(moving: Tensor, model: ModelConfig) -> Tensor:
    """(B, T, S, S) bool -> (B, N) share of each token's pixels."""
    return moving_share(moving, model.tubelet_size, model.patch_size)


def make_source(
    settings: dict[str, Any], model: ModelConfig, seed: int, device: torch.device, cache: Path
) -> Source:
    """The stream of a study's ``data`` entry; ``cache`` keeps listed videos' decoded clips.

    Raises:
        ConfigError: a list that cannot be read, or settings that no scene has; one line.
    """
    settings = _own(settings)
    if "train" in settings:
        side = round(MARGIN * model.image_size)
        shape = model.num_frames, settings.get("stride", 1), side
        bank = _decoded(settings["train"], WINDOWS, shape, cache).clips
        return ListedClips(bank.to(device), model.image_size, seed)
    return GeneratedClips(_scenes(settings, model, seed, device), model)


def make_probe(
    settings: dict[str, Any], model: ModelConfig, device: torch.device, cache: Path
) -> ProbeSet:
    """The clips of a study's ``probes`` entry."""
    settings = {k: v for k, v in settings.items() if k != "kinds"}
    parts = settings.pop("train"), settings.pop("test")
    if all(isinstance(part, str) for part in parts):
        return _listed_probe(parts, settings, model, device, cache)
    train, test = (
        _drawn(_scenes(settings, model, PROBE_SEED + number, device), count, model)
        for number, count in enumerate(parts)
    )
    return ProbeSet(train, test, _scenes(settings, model, PROBE_SEED, device).classes)


def unseen(
    settings: dict[str, Any], model: ModelConfig, count: int, device: torch.device
) -> LabelledClips:
    """Clips as those of a generated ``data`` entry, which no run trains on."""
    return _drawn(_scenes(_own(settings), model, PROBE_SEED + 1, device), count, model)


def _drawn(scenes: Scenes, count: int, model: ModelConfig) -> LabelledClips:
    batches = [scenes.batch(CHUNK, number) for number in range(-(-count // CHUNK))]
    clips, labels, moving = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
    return LabelledClips(clips, labels.cpu(), token_share(moving, model))


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """A ``data`` entry without what says which cells it has."""
    return {k: v for k, v in settings.items() if k not in ("strategies", "ratios")}


def _scenes(
    settings: dict[str, Any], model: ModelConfig, seed: int, device: torch.device
) -> Scenes:
    try:
        config = SceneConfig(**settings)
    except TypeError as error:
        raise ConfigError(f"{settings}: {error}") from None
    return Scenes(config, model.num_frames, model.image_size, seed, device)


def _listed_probe(
    parts: tuple[str, str],
    settings: dict[str, Any],
    model: ModelConfig,
    device: torch.device,
    cache: Path,
) -> ProbeSet:
    shape = model.num_frames, settings.get("stride", 1), model.image_size
    decoded = [_decoded(part, settings.get("clips", 1), shape, cache) for part in parts]
    known, asked = ([Video("", label) for label in part.labels] for part in decoded)
    *numbers, names = label_numbers(known, asked, parts)
    drawn = [
        LabelledClips(part.clips.to(device), labels, None, part.videos)
        for part, labels in zip(decoded, numbers, strict=True)
    ]
    return ProbeSet(*drawn, tuple(names))


class _Decoded(NamedTuple):
    """Windows of listed videos."""

    clips: Tensor
    """(M, T, S, S, 3) uint8."""
    labels: list[str]
    videos: Tensor
    """(M,) int64: the line of the list, from 0."""


def _decoded(path: str, clips: int, shape: tuple[int, int, int], cache: Path) -> _Decoded:
    """``clips`` windows of each video of a list; decoded once and kept in ``cache``, which a
    machine that has neither list nor videos may be given. A list that has changed is read again.

    shape: frames, stride and side.
    """
    # Many lists are called train.txt.
    which = f"{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    kept = cache / f"{which}_{clips}x{'_'.join(map(str, shape))}.npz"
    content = list_content(path)
    if not _is_of(kept, content):
        videos = read_videos(path, None, key="train")
        frames, stride, side = shape
        # One window of one video at a time would do; the workers are there for damaged files.
        loaded = load_eval_clips(
            videos, clips * len(videos), frames, stride, side, workers=cores(), timeout=60
        )
        if loaded.bad:
            raise ConfigError("; ".join(f"{path}: {reason}" for path, reason in loaded.bad[:3]))
        labels = [str(videos[index].label) for index in loaded.indices]
        cache.mkdir(parents=True, exist_ok=True)
        # Another part of the study may look for the file meanwhile: there whole, or not at all.
        with tempfile.TemporaryDirectory(dir=cache) as own:
            written = Path(own) / kept.name
            arrays = {"clips": loaded.clips.numpy(), "videos": np.asarray(loaded.indices)}
            np.savez_compressed(written, labels=labels, list=content, **arrays)
            os.replace(written, kept)
    with np.load(kept) as found:
        clips, videos = (torch.from_numpy(found[name]) for name in ("clips", "videos"))
        return _Decoded(clips, [str(label) for label in found["labels"]], videos)


def _is_of(kept: Path, content: str) -> bool:
    """Whether the clips in ``kept`` are those of the list as it is, or of one that is not here."""
    if not kept.exists():
        return False
    with np.load(kept) as found:
        return content in ("", str(found["list"]))
