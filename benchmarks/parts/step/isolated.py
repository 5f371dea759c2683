"""The same measurement with every path in a process of its own (``throughput.py --isolate``)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from parts import bench
from parts.isolate import run_child
from parts.step.measure import Measured, NothingRan, differs, peak_of
from parts.step.paths import PATHS
from parts.step.record import results
from tats_fast.config import RunConfig
from tats_fast.engine.precision import wants_bf16


def measure_isolated(
    options: Any,
    config: RunConfig,
    names: Sequence[str],
    device: torch.device,
    save: Callable[[Measured], None],
) -> Measured:
    """``measure``, each path alone on the device; the gate is judged here, from what the processes
    wrote, so that a wrong path's times are dropped after the fact.

    Args:
        save: called with what there is after every path.

    Raises:
        Failed: a path computes something else or fails, and nobody said ``--keep-going``.
        NothingRan: none could run.
    """
    precision = "bf16" if wants_bf16(config.train.precision, device) else "fp32"
    if options.peak_tflops is None:
        peak, source = peak_of(options, device, precision)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        peak, source = options.peak_tflops, "--peak-tflops"
    settings: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    baseline: dict[str, float] = {}
    for name in names:
        paths[name], own = _one(options, config, name, device, peak)
        if own:
            first = own["paths"][name]["first_step"]
            wrong = differs(name, first, baseline, precision)
            if wrong:
                paths[name] = {"failed": wrong[:160]}
            else:
                settings = settings or {**own, "peak_source": source, "paths": {}}
                settings["paths"] |= own["paths"]
                if PATHS[name].compared:
                    baseline = baseline or first
        if "failed" in paths[name] and not options.keep_going:
            raise bench.Failed(f"path {name}: {paths[name]['failed']}")
        if settings:
            save((settings, paths))
    if not settings:
        raise NothingRan(f"no path could run at batch {config.train.batch_size}", paths)
    print("each path in a process of its own, one after another")
    print(results(settings, paths))
    for name, entry in paths.items():
        if "step_ms" not in entry:
            print(f"{' '.join(*entry.items())} (path {name})")
    print(flush=True)
    return settings, paths


def _one(
    options: Any, config: RunConfig, name: str, device: torch.device, peak: float | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """One path's entry, and the ``config`` of its record; None where it did not run."""
    values = {
        "device": device.type,
        "model": options.model,
        "batch": config.train.batch_size,
        "mask-ratio": options.mask_ratio,
        "image-size": options.image_size,
        "frames": options.frames,
        "precision": options.precision,
        "inner-epochs": options.inner_epochs,
        "seed": options.seed,
        "steps": options.steps,
        "warmup": options.warmup,
        "paths": name,
        "peak-tflops": peak,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        arguments = [f"--{key}={value}" for key, value in values.items() if value is not None]
        arguments += ["--keep-going", f"--json={file}", *options.overrides]
        problem = run_child("throughput.py", arguments, options.isolate)
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError):
            return {"failed": problem or "wrote no record"}, None
    entry = record["paths"][name]
    return entry, record["config"] if "step_ms" in entry else None
