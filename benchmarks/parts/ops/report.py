"""The text printed beside an ops record, and the targets that it can judge."""

from __future__ import annotations

from typing import Any

from parts import bench

# "Speed and memory to reach": case, baseline implementation and least ratio, forward + backward.
CPU_TARGETS = (
    ("sampler_attention", "vit_s_r95", ("torch",), "reference", 2.5),
    ("sampler_attention", "vit_b_r95", ("torch",), "reference", 1.7),
)
GPU_TARGETS = (
    ("sampler_block", "vit_b_r95", ("triton", "triton_compiled"), "reference", 5.0),
    ("sampler_block", "vit_b_r95", ("triton", "triton_compiled"), "torch or compiled", 1.8),
)


def describe(record: dict[str, Any]) -> str:
    """What is about to be measured."""
    config = record["config"]
    return "\n".join(
        [
            *bench.provenance(record, "torch", "triton"),
            f"batch {config['batch']}, {config['dtype']}, {config['steps']} timed and "
            f"{config['warmup']} warm-up calls, implementations interleaved",
            ceilings_line(record),
        ]
    )


def ceilings_line(record: dict[str, Any]) -> str:
    """What the rooflines are relative to; measured ones may have risen during the run."""
    top, sheet = record["config"]["ceilings"], record["config"].get("data_sheet")
    line = f"ceilings: {_rates(top)} ({top['source']})"
    return f"{line}; the data sheet says {_rates(sheet)}" if sheet else line


def _rates(top: dict[str, Any]) -> str:
    return f"{top['bandwidth'] / 1e9:,.0f} GB/s, {top['rate'] / 1e12:,.3g} TFLOP/s"


def results(record: dict[str, Any], op: str) -> str:
    """One op's table."""
    header = [
        *(op, "implementation", "fwd ms", "bwd ms", "fwd+bwd p20", "p50", "p80", "x ref"),
        *("GB/s", "TFLOP/s", "roofline %", "peak MiB", "max rel err"),
    ]
    rows, notes = [], []
    for case, entries in record["ops"][op].items():
        for name, entry in entries.items():
            if "fwd_bwd_ms" in entry:
                rows.append([case, name, *_cells(entry, entries.get("reference", {}))])
            else:
                ((how, why),) = entry.items()
                notes.append(f"{how} {name}: {why}")
    return "\n".join([bench.table(header, rows), *dict.fromkeys(notes)])


def _cells(entry: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    both = entry["fwd_bwd_ms"]
    digits = 3 if both["p50"] < 10 else 1
    return [
        *(bench.number(entry[k] and entry[k]["p50"], digits) for k in ("fwd_ms", "bwd_ms")),
        *(bench.number(both[p], digits) for p in ("p20", "p50", "p80")),
        f"{speedup(entry, reference):.2f}" if "fwd_bwd_ms" in reference else "-",
        *(bench.number(entry["gbps"]), bench.number(entry["tflops"], 3)),
        bench.number(100 * entry["roofline"]),
        *(bench.number(entry["peak_mem_mb"]), f"{entry['max_rel_err']:.1e}"),
    ]


def speedup(entry: dict[str, Any], reference: dict[str, Any]) -> float:
    """Forward + backward, medians."""
    return reference["fwd_bwd_ms"]["p50"] / entry["fwd_bwd_ms"]["p50"]


def target_lines(record: dict[str, Any]) -> list[str]:
    """Targets met and missed, where this record can say: fp32 on a CPU, bf16 on a GPU."""
    config = record["config"]
    if config["device"] == "cpu" and config["dtype"] == "fp32":
        targets = CPU_TARGETS
    elif config["device"] == "cuda" and config["dtype"] == "bf16":
        targets = GPU_TARGETS
    else:
        return []
    lines = []
    for op, case, ours, baseline, least in targets:
        entries = record["ops"].get(op, {}).get(case, {})
        mine = fastest(entries, ours)
        theirs = fastest(entries, baseline.split(" or "))
        if mine is not None and theirs is not None:
            ratio = theirs / mine
            verdict = "met" if ratio >= least else "missed"
            lines.append(
                f"target {op} {case} forward + backward: {ratio:.2f} x {baseline}, "
                f"wanted {least}: {verdict}"
            )
    return lines


def fastest(entries: dict[str, Any], names: Any) -> float | None:
    """Shortest median of forward + backward among ``names``, ms; None where none ran."""
    times = [
        entries[name]["fwd_bwd_ms"]["p50"]
        for name in names
        if "fwd_bwd_ms" in entries.get(name, {})
    ]
    return min(times, default=None)
