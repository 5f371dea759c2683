"""The same measurement with every path alone on the device, in a process that its failure may end
(``throughput.py --isolate``)."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from parts import bench
from parts.isolate import is_cuda_error, run_child
from parts.step.measure import Measured, NothingRan, differs, measure, peak_of
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
    """``measure``, each path alone on the device; the gate is judged here, from what other
    processes wrote, so that a wrong path's times are dropped after the fact. One process measures
    path after path, since its start costs more than most paths do; where a path ends it, another
    goes on.

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

    def found(name: str, entry: dict[str, Any], own: dict[str, Any]) -> None:
        paths[name] = entry
        if "step_ms" in entry:
            first = own["paths"][name]["first_step"]
            wrong = differs(name, first, baseline, precision)
            if wrong:
                paths[name] = {"failed": wrong[:160]}
            else:
                if not settings:
                    settings.update({**own, "peak_source": source, "paths": {}})
                settings["paths"][name] = own["paths"][name]
                if PATHS[name].compared and not baseline:
                    baseline.update(first)
        if "failed" in paths[name] and not options.keep_going:
            raise bench.Failed(f"path {name}: {paths[name]['failed']}")
        if settings:
            save((settings, paths))

    remaining = list(names)
    while remaining:
        problem = _process(options, config, remaining, device, peak, found)
        remaining = [name for name in remaining if name not in paths]
        if remaining:  # the first of them ended the process
            found(remaining.pop(0), {"failed": problem or "wrote no record"}, {})
    if not settings:
        raise NothingRan(f"no path could run at batch {config.train.batch_size}", paths)
    print("each path alone, one after another")
    print(results(settings, paths))
    for name, entry in paths.items():
        if "step_ms" not in entry:
            print(f"{' '.join(*entry.items())} (path {name})")
    print(flush=True)
    return settings, paths


def _process(
    options: Any,
    config: RunConfig,
    names: Sequence[str],
    device: torch.device,
    peak: float | None,
    found: Callable[[str, dict[str, Any], dict[str, Any]], None],
) -> str | None:
    """Let one process measure these paths until one of them ends it; what went wrong then.

    Args:
        found: called with a path's name, its entry and the ``config`` of the record, as soon as the
            process has written them.
    """
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
        "paths": ",".join(names),
        "peak-tflops": peak,
    }
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"

        def progress() -> bool:
            try:
                record = json.loads(file.read_text())
            except (OSError, ValueError):  # none yet, or half of one
                return False
            new = [name for name in record["paths"] if name not in seen]
            for name in new:
                seen.add(name)
                found(name, record["paths"][name], record["config"])
            return bool(new)

        arguments = [f"--{key}={value}" for key, value in values.items() if value is not None]
        arguments += ["--alone", "--keep-going", f"--json={file}", *options.overrides]
        problem = run_child("throughput.py", arguments, options.isolate, progress)
        progress()
    return problem


def measure_alone(
    options: Any, config: RunConfig, names: Sequence[str], device: torch.device
) -> int:
    """What that process does: each path alone on the device, written down before the next begins.
    A CUDA error ends it."""
    record: dict[str, Any] = {"config": {}, "paths": {}}
    for name in names:
        try:
            own, paths = measure(options, config, [name], device)
        except NothingRan as error:
            if is_cuda_error(error):
                raise
            own, paths = {}, error.paths
        if own:
            others = record["config"].get("paths", {})
            record["config"] = {**own, "paths": others | own["paths"]}
        record["paths"] |= paths
        bench.write_json(options.json, record)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0
