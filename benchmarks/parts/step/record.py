"""A throughput record: one path's entry, and the text printed beside the JSON."""

from __future__ import annotations

from typing import Any

from parts import bench
from parts.step.stages import STAGES
from tats_fast.config import RunConfig


def summary(
    times: list[float],
    stages: dict[str, float | None],
    memory: float | None,
    first: dict[str, float],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """One path's entry; rates are those of the median step.

    Args:
        times: ms per timed step; stages: ms by stage; memory: MiB; first: the gate's values;
        settings: the record's ``config``.
    """
    step_ms = bench.percentiles(times)
    clips_per_s = 1e3 * settings["batch"] / step_ms["p50"]
    tflops = clips_per_s * settings["step_gflop_per_clip"] / 1e3
    peak = settings["peak_tflops"]
    return {
        "clips_per_s": clips_per_s,
        "step_ms": step_ms,
        "stages_ms": stages,
        "peak_mem_mb": memory,
        "tflops": tflops,
        "mfu": None if peak is None else tflops / peak,
        "loss": first["loss_recon"],
    }


def describe(record: dict[str, Any], run: RunConfig) -> str:
    """Where, and what kind of step, is about to be measured."""
    model, used = run.model, record["versions"]
    clip = f"{model.num_frames} x {model.image_size} x {model.image_size}"
    return "\n".join(
        [
            bench.hardware_line(record["hardware"]),
            f"tats-fast {used['tats_fast']} at {record['commit'] or 'unknown commit'}, "
            f"torch {used['torch']}, triton {used['triton'] or 'not installed'}",
            f"{model.preset} (C={model.width}, {model.depth} blocks), {clip}",
        ]
    )


def describe_batch(config: dict[str, Any]) -> str:
    """One batch size, a record's ``config``."""
    peak, strategy = config["peak_tflops"], config["run"]["masking"]["strategy"]
    reference = f"{peak:g} TFLOP/s" if peak else "nothing: no peak known (--peak-tflops)"
    return "\n".join(
        [
            f"batch {config['batch']}, {config['precision']}, {strategy} with "
            f"{config['visible']} of {config['tokens']} tokens visible, inner epochs "
            f"K={config['inner_epochs']}",
            f"clips: {config['clips']}; on the device from the start, so data wait is not measured",
            f"model FLOPs per step and clip: {config['step_gflop_per_clip']:.4g} GFLOP for every "
            f"path (flops.py, absorbed trajectory stage); MFU relative to {reference}",
            f"{config['steps']} timed and {config['warmup']} warm-up rounds, paths interleaved",
        ]
    )


def gate_line(first: dict[str, dict[str, float]], settings: dict[str, Any]) -> str:
    """That the paths agree, on what, and how closely they had to."""
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


def results(config: dict[str, Any], paths: dict[str, Any]) -> str:
    """The two tables of the paths that ran: rates, then stages."""
    paths = {name: path for name, path in paths.items() if "step_ms" in path}
    baseline = next(iter(paths))
    header = [
        *("path", "kernels", "attention", "clips/s", "p20 ms", "p50 ms", "p80 ms"),
        *(f"x {baseline}", "peak MiB", "TFLOP/s", "MFU %", "loss"),
    ]
    rows = []
    for name, path in paths.items():
        how, step = config["paths"][name], path["step_ms"]
        ratio = paths[baseline]["step_ms"]["p50"] / step["p50"]
        rows.append(
            [
                *(
                    name,
                    "+".join(sorted(set(how["kernels"].values()))) + " compiled" * how["compile"],
                ),
                how["attention"],
                bench.number(path["clips_per_s"], 3 if path["clips_per_s"] < 10 else 1),
                *(bench.number(step[p]) for p in ("p20", "p50", "p80")),
                *(f"{ratio:.2f}", bench.number(path["peak_mem_mb"], 0)),
                bench.number(path["tflops"], 3 if path["tflops"] < 10 else 1),
                bench.number(None if path["mfu"] is None else 100 * path["mfu"]),
                f"{path['loss']:.5f}",
            ]
        )
    return f"{bench.table(header, rows)}\n\n{_stage_table(paths)}"


def _stage_table(paths: dict[str, Any]) -> str:
    rows = [
        [stage, *(bench.number(path["stages_ms"][stage]) for path in paths.values())]
        for stage in STAGES
    ]
    sums = [sum(filter(None, path["stages_ms"].values())) for path in paths.values()]
    rows.append(["sum of stages", *map(bench.number, sums)])
    rows.append(["step p50", *(bench.number(p["step_ms"]["p50"]) for p in paths.values())])
    return bench.table(["stage (ms, own untimed steps)", *paths], rows)
