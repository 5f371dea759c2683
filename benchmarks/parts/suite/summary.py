"""The suite's record folder: one throughput.json, the log, and summary.md with the targets."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from parts import bench
from parts.ops.report import speedup, target_lines
from parts.suite.sections import COMPARED_BATCH

STEP_TARGETS = (("reference", 3.0), ("compiled", 1.6))
CLIPS_TARGET, MFU_TARGET, ACTIVATION_TARGET_GB = 1200.0, 0.40, 0.25
INTERMEDIATE = ("sweep.json", "k1.json", "k2.json", "tests.json")


def write_record(
    out: Path, outcomes: list[dict[str, Any]], command: str, seconds: float, quick: bool
) -> str:
    """Write summary.md, throughput.json and log.txt; the short summary to print.

    Args:
        outcomes: one per section: name, status, seconds, detail, output.
    """
    found = {name: _read(out / name) for name in (*INTERMEDIATE, "ops.json", "tuning.json",
                                                   "environment.json")}  # fmt: skip
    for name in INTERMEDIATE:
        (out / name).unlink(missing_ok=True)
    throughput = merged_throughput(found)
    if throughput:
        bench.write_json(str(out / "throughput.json"), throughput)
    for name in ("profile", "resources"):
        text = next((o["output"] for o in outcomes if o["name"] == name), "")
        if text:
            (out / f"{name}.txt").write_text(text)
    log = "\n".join(
        f"=== {o['name']}: {o['status']} {o['detail']}\n{o['output']}" for o in outcomes
    )
    (out / "log.txt").write_text(log)
    sections = [[o["name"], o["status"], bench.number(o["seconds"], 0), o["detail"].replace(
        "|", "/")] for o in outcomes]  # fmt: skip
    targets = [] if quick else target_rows(found, throughput)
    parts = [
        f"# GPU suite{' (quick: tiny sizes on a CPU, no result)' if quick else ''}",
        f"    {command}",
        _where(found["environment.json"]),
        f"{seconds:.0f} s in all.",
        "## Sections",
        bench.markdown(["section", "outcome", "s", ""], sections),
    ]
    for title, table in (
        ("Targets", _table(["target", "wanted", "measured", ""], targets)),
        ("Tests", _tests(found["tests.json"])),
        ("Whole step", _steps(throughput)),
        ("Batch sizes and memory", _sweep(throughput)),
        ("Ops, forward + backward", _ops(found["ops.json"])),
        ("Kernel configurations", _tuning(found["tuning.json"])),
    ):
        if table:
            parts += [f"## {title}", table]
    (out / "summary.md").write_text("\n\n".join(parts) + "\n")
    lines = [f"record: {out}"]
    lines += [f"target {name}: wanted {wanted}, {got}: {verdict}"
              for name, wanted, got, verdict in targets]  # fmt: skip
    return "\n".join(lines if targets else [*lines, "targets: not judged at these sizes"])


def merged_throughput(found: dict[str, Any]) -> dict[str, Any]:
    """The K = 1 record as throughput.py writes it, with ``k2`` (config and paths of K = 2) and
    ``batches`` (the sweep) beside it; what did not run is left out."""
    records = [found[name] for name in ("k1.json", "k2.json", "sweep.json") if found[name]]
    if not records:
        return {}
    merged = dict(found["k1.json"] or records[0])
    if found["k2.json"]:
        merged["k2"] = {key: found["k2.json"][key] for key in ("config", "paths")}
    if found["sweep.json"]:
        merged["batches"] = found["sweep.json"].get("batches", {})
    return merged


def target_rows(found: dict[str, Any], throughput: dict[str, Any]) -> list[list[str]]:
    """Every target of the design for this hardware with what was measured: met, missed, or not
    measured."""
    rows = []
    for line in target_lines(found["ops.json"]) if found["ops.json"] else []:
        text, _, verdict = line.removeprefix("target ").rpartition(": ")
        name, _, numbers = text.partition(": ")
        got, _, wanted = numbers.partition(", wanted ")
        rows.append([name, wanted + " x", got, verdict])
    paths = throughput.get("paths", {})
    ran = {name: path for name, path in paths.items() if "clips_per_s" in path}
    fast = [ran[name] for name in ("fast", "fast_eager") if name in ran]
    best = max(fast, key=lambda path: path["clips_per_s"], default=None)
    for baseline, least in STEP_TARGETS:
        ratio = None
        if best is not None and baseline in ran:
            ratio = best["clips_per_s"] / ran[baseline]["clips_per_s"]
        name = f"whole step over {baseline}, K=1"
        rows.append([name, f"{least} x", *_judge(ratio, least, "{:.2f} x")])
    swept = [path for entry in throughput.get("batches", {}).values()
             for path in entry["paths"].values() if "clips_per_s" in path]  # fmt: skip
    candidates = [*fast, *swept]
    clips = max((path["clips_per_s"] for path in candidates), default=None)
    rows.append(["clips/s, K=1, best batch", f"{CLIPS_TARGET:,.0f}",
                 *_judge(clips, CLIPS_TARGET, "{:,.0f}")])  # fmt: skip
    mfu = max((path["mfu"] for path in candidates if path["mfu"] is not None), default=None)
    rows.append(["MFU, K=1, best batch", f"{MFU_TARGET:.0%}", *_judge(mfu, MFU_TARGET, "{:.1%}")])
    slopes = [slope for _, slope in memory_slopes(throughput) if slope is not None]
    gigabytes = slopes[-1] * 2**20 / 1e9 if slopes else None
    got, verdict = "not measured", "-"
    if gigabytes is not None:
        got = f"{gigabytes:.3f} GB"
        verdict = "met" if gigabytes <= ACTIVATION_TARGET_GB else "missed"
    rows.append(["activations per clip", f"at most {ACTIVATION_TARGET_GB} GB", got, verdict])
    rows.append(["data wait with DALI", "below 3%", "not measured here", "-"])
    return rows


def _judge(value: float | None, least: float, form: str) -> tuple[str, str]:
    if value is None:
        return "not measured", "-"
    return form.format(value), "met" if value >= least else "missed"


def memory_slopes(throughput: dict[str, Any]) -> list[tuple[str, float | None]]:
    """(batch, MiB that each clip more than the batch before added to the peak): weights, optimizer
    and gradients cancel in the difference."""
    peaks = []
    for batch, entry in throughput.get("batches", {}).items():
        path = next((p for p in entry["paths"].values() if p.get("peak_mem_mb") is not None), None)
        if path is not None:
            peaks.append((int(batch), path["peak_mem_mb"]))
    slopes: list[tuple[str, float | None]] = [(str(b), None) for b, _ in peaks[:1]]
    for (small, low), (large, high) in pairwise(peaks):
        slopes.append((str(large), (high - low) / (large - small)))
    return slopes


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _where(environment: dict[str, Any] | None) -> str:
    if environment is None:
        return "environment.json was not written."
    used = environment["versions"]
    lines = [
        bench.hardware_line(environment["hardware"]),
        f"torch {used['torch']}, CUDA {used['cuda']}, triton {used['triton']}; commit "
        f"{environment['commit'] or 'unknown'}",
        *(f"measured {name}: {m['bandwidth'] / 1e9:,.0f} GB/s, {m['rate'] / 1e12:,.3g} TFLOP/s"
          for name, m in environment["measured"].items()),
        "missing: " + (", ".join(environment["missing"]) or "nothing"),
    ]  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)


def _table(header: list[str], rows: list[list[str]]) -> str:
    return bench.markdown(header, rows) if rows else ""


def _tests(tests: dict[str, Any] | None) -> str:
    if tests is None:
        return ""
    numbers = ", ".join(f"{tests[k]} {k.replace('_', ' ')}"
                        for k in ("passed", "failed", "skipped", "not_run"))  # fmt: skip
    failures = [f"- `{name}`: {bench.reason(text)}" for name, text in tests["failures"].items()]
    return "\n".join([f"{numbers} in {tests['seconds']} s", *failures[:30]])


def _steps(throughput: dict[str, Any]) -> str:
    if "config" not in throughput:
        return ""
    rows = []
    for record in (throughput, throughput.get("k2")):
        if record is None:
            continue
        config = record["config"]
        ran = {n: p for n, p in record["paths"].items() if "clips_per_s" in p}
        base = ran.get("reference", {}).get("clips_per_s")
        for name, path in record["paths"].items():
            start = [str(config["inner_epochs"]), str(config["batch"]), name]
            if name not in ran:
                rows.append([*start, " ".join(*path.items()).replace("|", "/"), *["-"] * 5])
                continue
            rows.append(
                [*start, bench.number(path["clips_per_s"]), bench.number(path["step_ms"]["p50"]),
                 "-" if base is None else f"{path['clips_per_s'] / base:.2f}",
                 bench.number(path["peak_mem_mb"], 0), bench.number(path["tflops"]),
                 "-" if path["mfu"] is None else f"{path['mfu']:.1%}"]
            )  # fmt: skip
    header = ["K", "batch", "path", "clips/s", "step p50, ms", "x reference", "peak MiB"]
    steps = _table([*header, "TFLOP/s", "MFU"], rows)
    ran = {n: p for n, p in throughput["paths"].items() if "stages_ms" in p}
    stages = [[stage, *(bench.number(p["stages_ms"][stage], 2) for p in ran.values())]
              for stage in next(iter(ran.values()), {"stages_ms": {}})["stages_ms"]]  # fmt: skip
    k = throughput["config"]["inner_epochs"]
    return f"{steps}\n\n{_table([f'stage, ms, K={k}', *ran], stages)}".strip()


def _sweep(throughput: dict[str, Any]) -> str:
    slopes = dict(memory_slopes(throughput))
    rows = []
    for batch, entry in throughput.get("batches", {}).items():
        for name, path in entry["paths"].items():
            if "clips_per_s" in path:
                rows.append([batch, name, bench.number(path["clips_per_s"]),
                             "-" if path["mfu"] is None else f"{path['mfu']:.1%}",
                             bench.number(path["peak_mem_mb"], 0),
                             bench.number(slopes.get(batch))])  # fmt: skip
    table = _table(["batch", "path", "clips/s", "MFU", "peak MiB", "MiB per added clip"], rows)
    note = f"Paths are compared at batch {COMPARED_BATCH} or what fits below it."
    return f"{table}\n\n{note}" if table else ""


def _ops(record: dict[str, Any] | None) -> str:
    rows = []
    for op, cases in (record or {"ops": {}})["ops"].items():
        for case, entries in cases.items():
            for name, entry in entries.items():
                if "failed" in entry:
                    rows.append([op, case, name, f"failed: {entry['failed']}", *["-"] * 4])
                elif "fwd_bwd_ms" in entry:
                    rows.append(
                        [op, case, name, bench.number(entry["fwd_bwd_ms"]["p50"], 3),
                         f"{speedup(entry, entries['reference']):.2f}",
                         f"{entry['roofline']:.1%}", bench.number(entry["peak_mem_mb"], 0),
                         f"{entry['max_rel_err']:.1e}"]
                    )  # fmt: skip
    header = ["op", "case", "implementation", "p50, ms", "x reference", "of the roofline"]
    return _table([*header, "peak MiB", "max rel err"], rows)


def _tuning(record: dict[str, Any] | None) -> str:
    rows = []
    for name, found in (record or {"tunables": {}})["tunables"].items():
        if "skipped" in found:
            rows.append([name, found["skipped"], "-", "-"])
        else:
            gain = "-" if found["gain"] is None else f"{found['gain']:.3f}"
            rows.append([name, found["chosen"], found["fastest"] or "none ran", gain])
    return _table(["kernel", "chosen", "fastest", "chosen / fastest"], rows)
