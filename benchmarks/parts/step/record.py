"""A throughput record: one path's entry, and the text printed beside the JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parts import bench
from tats_fast.config import RunConfig


def summary(
    name: str,
    times_ms: list[float],
    stages_ms: dict[str, float],
    memory: dict[str, float | None],
    loss: float,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The entry of path ``name`` under ``settings``, the record's ``config``; rates are those of
    the median step.

    Args:
        memory: ``peak_mem_mb`` and ``planned_mem_mb``, which ``tats-fast plan`` makes of it; MiB.
    """
    step_ms = bench.percentiles(times_ms)
    clips_per_s = 1e3 * settings["batch"] / step_ms["p50"]
    tflops = clips_per_s * settings["paths"][name]["step_gflop_per_clip"] / 1e3
    peak, sheet = settings["peak_tflops"], settings["data_sheet_tflops"]
    return {
        "clips_per_s": clips_per_s,
        "step_ms": step_ms,
        # Clips lie on the device from the start: there is no loader here.
        "stages_ms": {"data_wait": None, **stages_ms},
        **memory,
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak,
        "mfu_data_sheet": None if sheet is None else tflops / sheet,
        "loss": loss,
    }


def describe(record: dict[str, Any], run: RunConfig) -> str:
    """Where, and what kind of step, is about to be measured."""
    model = run.model
    clip = f"{model.num_frames} x {model.image_size} x {model.image_size}"
    lines = bench.provenance(record, "torch", "triton")
    return "\n".join([*lines, f"{model.preset} (C={model.width}, {model.depth} blocks), {clip}"])


def describe_batch(config: dict[str, Any]) -> str:
    """One batch size, a record's ``config``."""
    peak, strategy = config["peak_tflops"], config["run"]["masking"]["strategy"]
    reference = "nothing: no peak known (--peak-tflops)"
    if peak:
        sheet = config["data_sheet_tflops"]
        beside = f"; the data sheet says {sheet:g}" if sheet else ""
        reference = f"{peak:.4g} TFLOP/s ({config['peak_source']}{beside})"
    return "\n".join(
        [
            f"batch {config['batch']}, {config['precision']}, {strategy} with "
            f"{config['visible']} of {config['tokens']} tokens visible, inner epochs "
            f"K={config['inner_epochs']}",
            f"clips: {config['clips']}; on the device from the start, so data wait is not measured",
            f"model FLOPs per step and clip: {config['step_gflop_per_clip']:.4g} GFLOP with "
            f"the sampler (flops.py, absorbed trajectory stage); MFU relative to {reference}",
            f"{config['steps']} timed and {config['warmup']} warm-up rounds, paths interleaved",
        ]
    )


def gate_line(first: dict[str, dict[str, float]], settings: dict[str, Any]) -> str:
    """That the paths agree, on what, and how closely they had to."""
    if not first:
        return "no path that the gate judges: other masks, other losses"
    baseline, *others = first
    losses, norms = settings["tolerance_losses"], settings["tolerance_grad_norms"]
    values = ", ".join(f"{name} {value:.6g}" for name, value in first[baseline].items())
    if not others:
        return f"first step of {baseline}: {values}; no second path to compare it with"
    return (
        f"gate passed: first step of {', '.join(others)} agrees with {baseline} ({values}); "
        f"tolerance {losses:g} relative, policy and value loss relative to at least 1; gradient "
        f"norms {norms:g}"
    )


def results(
    config: dict[str, Any],
    paths: dict[str, Any],
    table: Callable[[list[str], list[list[str]]], str] = bench.table,
) -> str:
    """Two tables of the paths that ran, rates and stages, how good the plan of their memory was,
    and a note on those whose losses are not comparable; "" where none ran."""
    paths = {name: path for name, path in paths.items() if "step_ms" in path}
    if not paths:
        return ""
    baseline = next(iter(paths))
    header = ["path", "kernels", "attention", "clips/s", "p20 ms", "p50 ms", "p80 ms"]
    header += [f"x {baseline}", "peak MiB", "TFLOP/s", "MFU %"]
    header += ["MFU % of data sheet", "loss"]
    rows = []
    for name, path in paths.items():
        how, step = config["paths"][name], path["step_ms"]
        levels = "+".join(sorted(set(how["kernels"].values()))) + " compiled" * how["compile"]
        levels += " graph" * how.get("cuda_graph", False)  # older records and peers do not say
        ratio = paths[baseline]["step_ms"]["p50"] / step["p50"]
        rates = [path["clips_per_s"], path["tflops"]]
        clips, tflops = (bench.number(rate, 3 if rate < 10 else 1) for rate in rates)
        times = [bench.number(step[p]) for p in ("p20", "p50", "p80")]
        cells = [f"{ratio:.2f}", bench.number(path["peak_mem_mb"], 0), tflops]
        mfu = [bench.number(path[key] and 100 * path[key]) for key in ("mfu", "mfu_data_sheet")]
        loss = f"{path['loss']:.5f}"
        rows.append([name, levels, how["attention"], clips, *times, *cells, *mfu, loss])
    stages = [
        [stage, *(bench.number(path["stages_ms"].get(stage)) for path in paths.values())]
        for stage in max((path["stages_ms"] for path in paths.values()), key=len)
    ]
    sums = [sum(filter(None, path["stages_ms"].values())) for path in paths.values()]
    stages.append(["sum of stages", *map(bench.number, sums)])
    stages.append(["step p50", *(bench.number(p["step_ms"]["p50"]) for p in paths.values())])
    spent = table(["stage (ms, own untimed steps)", *paths], stages)
    others = [name for name in paths if not config["paths"][name]["compared"]]
    notes = {
        "peak memory, planned over measured: ": _planned(paths),
        "other masks or lessons, so no gate and losses that do not compare: ": others,
    }
    said = [note + ", ".join(names) for note, names in notes.items() if names]
    return "\n\n".join([table(header, rows), spent, *said])


def _planned(paths: dict[str, Any]) -> list[str]:
    memory = {
        name: (path.get("planned_mem_mb"), path["peak_mem_mb"])  # older records have no plan
        for name, path in paths.items()
    }
    return [f"{name} {plan / peak:.2f}" for name, (plan, peak) in memory.items() if plan and peak]
