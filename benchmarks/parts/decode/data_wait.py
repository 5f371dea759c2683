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
from parts.decode.cases import RAW
from tats_fast.config import load_config
from tats_fast.data.lists import Video
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
    """The files that a run reads, and its decoder."""

    source: str
    backend: str
    repeats: int = 1

    @property
    def name(self) -> str:
        """Its name in the record and the tables."""
        again = f", repeats {self.repeats}" if self.repeats > 1 else ""
        return f"{self.source}, {self.backend}{again}"


def scenarios(
    sources: list[str], native: Collection[tuple[str, str]], device: torch.device
) -> list[Scenario]:
    """Raw; the first copies, also decoding one window in four; and DALI on what it decodes here.

    Args:
        sources: names of the sources in the order of the cases.
        native: (source, backend) that were timed, so nothing is measured through a fallback.
        device: where the training runs.
    """
    copies = next(name for name in sources if name != RAW)
    chosen = [Scenario(RAW, "pyav"), Scenario(copies, "pyav"), Scenario(copies, "pyav", 4)]
    dali = "dali-gpu" if device.type == "cuda" else "dali"
    for source in reversed(sources):
        if (source, dali) in native:
            chosen += [Scenario(source, "pyav")] * (source != copies) + [Scenario(source, "dali")]
            break
    return chosen


def train(
    plans: list[Scenario],
    sources: dict[str, list[Video]],
    folder: Path,
    device: torch.device,
    workers: int,
    quick: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train every scenario in ``folder``, in turns.

    Returns:
        by scenario, percentiles of clips/s and of the share of time spent waiting for clips, and
        the median's split of a clip's time in ms.
    """
    rounds, lines, log_every = (2, 2, 1) if quick else (2, 6, 4)
    gpu = device.type == "cuda"
    metrics: dict[str, list[dict[str, float]]] = {scenario.name: [] for scenario in plans}
    for round_ in range(rounds):
        for number, scenario in enumerate(plans):
            name = f"run_{round_}_{number}"
            files = folder / f"{name}.txt"
            files.write_text("".join(f"{video.path}\n" for video in sources[scenario.source]))
            settings = {
                "name": name,
                "output_dir": folder,
                "device": device.type,
                "train.batch_size": GPU_BATCH if gpu else BATCH,
                "train.steps": lines * log_every,
                "train.log_every": log_every,
                "train.checkpoint_every": lines * log_every,
                "train.image_every": 0,
                "data.train": files,
                "data.backend": scenario.backend,
                "data.repeats": scenario.repeats,
                "data.workers": workers,
            }
            overrides = [f"{key}={value}" for key, value in settings.items()]
            config = load_config(overrides=[*(GPU_MODEL if gpu else MODEL), *overrides])
            with contextlib.redirect_stdout(io.StringIO()):
                Trainer(config, World(0, 1, device)).run()
            rows = (folder / name / "metrics.jsonl").read_text().splitlines()
            metrics[scenario.name] += map(json.loads, rows[1:])
    return {name: _summary(rows) for name, rows in metrics.items()}


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    ms = [1e3 / row["clips_per_s"] for row in rows]
    waits = [time * row["data_wait_frac"] for time, row in zip(ms, rows, strict=True)]
    wait, whole = bench.percentiles(waits), bench.percentiles(ms)
    return {
        "lines": len(rows),
        "clips_per_s": bench.percentiles([row["clips_per_s"] for row in rows]),
        "data_wait_frac": bench.percentiles([row["data_wait_frac"] for row in rows]),
        "wait_ms_per_clip": wait["p50"],
        "step_ms_per_clip": whole["p50"] - wait["p50"],
        "host_decoded_frac": max(row["host_decoded_frac"] for row in rows),
    }
