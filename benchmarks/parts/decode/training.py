"""How long training waits for clips: the real trainer on raw files, on copies, and decoding less.

On a CPU the model is small, so that decoding raw files is what limits it; on a GPU it is ViT-B.
Runs take turns, and the first line of each run's metrics, with the start of the workers in it, does
not count.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parts import bench
from parts.decode.cases import RAW, Source
from tats_fast.config import RunConfig, load_config
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer

# 64 pixels: on two cores a step of 224-pixel clips takes longer than decoding them, at any width.
MODEL = (
    *("model.num_frames=16", "model.image_size=64", "model.width=64", "model.depth=2"),
    *("model.heads=2", "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_heads=2"),
)
BATCH = 8
# A GPU trains ViT-B on 16 x 224 x 224, the default, with the fast setting of the sampler.
GPU_MODEL, GPU_BATCH = ("ppo.epochs=1",), 64


@dataclass(frozen=True)
class Scenario:
    """What a run reads, and how."""

    source: str
    backend: str
    repeats: int = 1

    @property
    def name(self) -> str:
        """As in the record and the tables."""
        again = f", repeats {self.repeats}" if self.repeats > 1 else ""
        return f"{self.source}, {self.backend}{again}"


@dataclass(frozen=True)
class Plan:
    """Of all runs alike."""

    device: torch.device
    folder: Path
    workers: int
    rounds: int
    lines: int
    """Of metrics in a run; the first does not count."""
    log_every: int
    """Steps of a line."""

    @classmethod
    def of(cls, options: Any, device: torch.device, folder: Path) -> Plan:
        """What the options mean."""
        rounds, lines, log_every = (1, 2, 1) if options.quick else (2, 6, 4)
        return cls(device, folder, options.workers, rounds, lines, log_every)

    @property
    def steps(self) -> int:
        """Of a run."""
        return self.lines * self.log_every


def scenarios(
    sources: list[str], native: Collection[tuple[str, str]], device: torch.device
) -> list[Scenario]:
    """Raw; the first copies, also decoding one window in four; and DALI on what it decodes here.

    native: (source, backend) that were timed, so nothing is measured through a fallback.
    """
    copies = next(name for name in sources if name != RAW)
    found = [Scenario(RAW, "pyav"), Scenario(copies, "pyav"), Scenario(copies, "pyav", 4)]
    dali = "dali-gpu" if device.type == "cuda" else "dali"
    for source in reversed(sources):
        if (source, dali) in native:
            found += [Scenario(source, "pyav")] * (source != copies) + [Scenario(source, "dali")]
            break
    return found


def train(
    plans: list[Scenario], sources: dict[str, Source], plan: Plan
) -> dict[str, dict[str, Any]]:
    """Per scenario percentiles of clips/s and of the share of time spent waiting for clips, and
    the median's split of a clip's time in ms."""
    lines: dict[str, list[dict[str, float]]] = {scenario.name: [] for scenario in plans}
    for round_ in range(plan.rounds):
        for number, scenario in enumerate(plans):
            config = _config(scenario, sources[scenario.source], plan, f"run_{round_}_{number}")
            lines[scenario.name] += _run(config, plan.device)
    return {name: _summary(rows) for name, rows in lines.items()}


def _config(scenario: Scenario, source: Source, plan: Plan, name: str) -> RunConfig:
    listed = plan.folder / f"{name}.txt"
    listed.write_text("".join(f"{video.path}\n" for video in source.videos))
    gpu = plan.device.type == "cuda"
    settings = {
        "name": name,
        "output_dir": plan.folder,
        "device": plan.device.type,
        "train.batch_size": GPU_BATCH if gpu else BATCH,
        "train.steps": plan.steps,
        "train.log_every": plan.log_every,
        "train.checkpoint_every": plan.steps,
        "train.image_every": 0,
        "data.train": listed,
        "data.backend": scenario.backend,
        "data.repeats": scenario.repeats,
        "data.workers": plan.workers,
    }
    model = GPU_MODEL if gpu else MODEL
    return load_config(overrides=[*model, *(f"{key}={value}" for key, value in settings.items())])


def _run(config: RunConfig, device: torch.device) -> list[dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(config, World(0, 1, device)).run()
    metrics = Path(config.output_dir) / config.name / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()][1:]


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    ms = [1e3 / row["clips_per_s"] for row in rows]
    waits = [each * row["data_wait_frac"] for each, row in zip(ms, rows, strict=True)]
    wait, whole = bench.percentiles(waits), bench.percentiles(ms)
    return {
        "lines": len(rows),
        "clips_per_s": bench.percentiles([row["clips_per_s"] for row in rows]),
        "data_wait_frac": bench.percentiles([row["data_wait_frac"] for row in rows]),
        "wait_ms_per_clip": wait["p50"],
        "step_ms_per_clip": whole["p50"] - wait["p50"],
        "host_decoded_frac": max(row["host_decoded_frac"] for row in rows),
    }
