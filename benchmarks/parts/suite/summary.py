"""The suite's record folder: one throughput.json, the log, and summary.md with the targets."""

from __future__ import annotations

import json
import re
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from parts import bench
from parts.ops.report import ceilings_line, speedup, target_lines
from parts.step.record import results as step_results
from parts.suite.sections import BATCH

OPS_TARGET = re.compile("target (.+): (.+), wanted (.+): (.+)")
STEP_TARGETS = (("reference", 3.0), ("compiled", 1.6))
CLIPS_TARGET, MFU_TARGET, ACTIVATION_TARGET_GB = 1200.0, 0.40, 0.25
RAW = (
    *("first.json", "sweep.json", "k1.json", "k2.json", "tests.json"),
    *("ops.json", "tuning.json", "environment.json"),
)
COPIED = ("environment.json", "tests.json", "ops.json", "tuning.json")
"""With throughput.json, summary.md, log.txt and the archive eight files at most."""
ARCHIVE = "record.tar.gz"
LOG_BYTES = 100_000
"""Of each section's output in log.txt; the archive has all of it."""
SHOWN = ("profile", "profile eager", "attention", "repeat", "pretraining")
"""Sections whose output is shown as it is."""
SHOWN_BYTES = 6_000


def write_record(
    out: Path,
    raw: Path,
    outcomes: list[dict[str, Any]],
    command: str,
    seconds: float,
    quick: bool,
) -> str:
    """Write the record of what has run so far; the short summary to print.

    Args:
        out: the record's folder.
        raw: what the sections wrote, all of which goes into the archive.
        outcomes: one per section: name, status, seconds, detail, output.
    """
    records = {name: _read(raw / name) for name in RAW}
    throughput = merged_throughput(records)
    if throughput:
        bench.write_json(out / "throughput.json", throughput)
    for name in COPIED:
        if records[name] is not None:
            bench.write_json(out / name, records[name])
    log = [
        f"=== {o['name']}: {o['status']} {o['detail']}\n{o['output'][-LOG_BYTES:]}"
        for o in outcomes
    ]
    (out / "log.txt").write_text("\n".join(log))
    sections = [
        [o["name"], o["status"], bench.number(o["seconds"], 0), o["detail"]] for o in outcomes
    ]
    parts = [
        f"# GPU suite{' (quick: tiny sizes on a CPU, no result)' if quick else ''}",
        f"    {command}",
        _environment(records["environment.json"]),
        f"{seconds:.0f} s in all.",
        "## Sections",
        _table(["section", "outcome", "s", ""], sections),
    ]
    shown = {o["name"]: o["output"].strip()[-SHOWN_BYTES:] for o in outcomes if o["name"] in SHOWN}
    tables = {
        **record_tables(records, throughput, judged=not quick),
        **{name.capitalize(): f"```\n{text}\n```" for name, text in shown.items() if text},
    }
    for title, table in tables.items():
        if table:
            parts += [f"## {title}", table]
    (out / "summary.md").write_text("\n\n".join(parts) + "\n")
    archive(out, raw)
    lines = [
        f"target {name}: wanted {wanted}, {measured}: {verdict}"
        for name, wanted, measured, verdict in ([] if quick else target_rows(records, throughput))
    ]
    return "\n".join([f"record: {out}", *(lines or ["targets: not judged at these sizes"])])


def archive(out: Path, raw: Path) -> None:
    """Everything in one file, replaced at once so that no half of it is ever seen."""
    new = out / f".{ARCHIVE}"
    with tarfile.open(new, "w:gz", compresslevel=6) as tar:
        for file in sorted(raw.iterdir()):
            tar.add(file, f"raw/{file.name}")
        tar.add(out / "summary.md", "summary.md")
    new.replace(out / ARCHIVE)


def record_tables(
    records: dict[str, Any], throughput: dict[str, Any], judged: bool
) -> dict[str, str]:
    """Every table that a record gives, by title; "" where it says nothing.

    Args:
        records: ``COPIED`` by name, None where one was not written.
        judged: whether the sizes are those that the targets are about.
    """
    targets = target_rows(records, throughput) if judged else []
    return {
        "Targets": _table(["target", "wanted", "measured", ""], targets),
        "Tests": _tests(records["tests.json"]),
        "Whole step": _steps(throughput),
        "Batch sizes and memory": _sweep(throughput),
        "Ops, forward + backward": _ops(records["ops.json"]),
        "Kernel configurations": _tuning(records["tuning.json"]),
    }


def page(folders: list[Path]) -> str:
    """The tables of committed records for the documentation; of a file that several have, the last
    folder's counts."""
    names = (*COPIED, "throughput.json")
    found = [{name: _read(folder / name) for name in names} for folder in folders]
    records = {name: next((r[name] for r in reversed(found) if r[name]), None) for name in names}
    throughput = records["throughput.json"] or {}
    parts = [_environment(records["environment.json"])]
    for title, table in record_tables(records, throughput, judged=True).items():
        if table:
            parts += [f"**{title}**", table]
    return "\n\n".join(parts)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; nothing without rows."""
    escaped = [[text.replace("|", "/") for text in row] for row in rows]
    return bench.markdown(header, escaped) if rows else ""


def merged_throughput(records: dict[str, Any]) -> dict[str, Any]:
    """The K = 1 record as throughput.py writes it (of stage a alone: its first steps), with ``k2``
    (config and paths of K = 2) and ``batches`` (the sweep, and the batch of K = 1) beside it; what
    did not run is left out."""
    once, twice, sweep = (records[name] for name in ("k1.json", "k2.json", "sweep.json"))
    once = _ran(once) or _ran(records["first.json"])
    merged = dict(once or _ran(twice) or _ran(sweep) or {})
    if _ran(twice):
        merged["k2"] = {key: twice[key] for key in ("config", "paths")}
    if _ran(sweep):
        batches = {int(batch): entry for batch, entry in sweep.get("batches", {}).items()}
        if once:
            same = {n: p for n, p in once["paths"].items() if n in sweep["paths"]}
            batches.setdefault(once["config"]["batch"], {"paths": same})
        merged["batches"] = {str(batch): batches[batch] for batch in sorted(batches)}
    return merged


def _ran(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record, if any of its paths was timed."""
    return record if record and "config" in record else None


def target_rows(records: dict[str, Any], throughput: dict[str, Any]) -> list[list[str]]:
    """Every target of the design for this hardware with what was measured: met, missed, or not
    measured."""
    rows = []
    for line in target_lines(records["ops.json"]) if records["ops.json"] else []:
        name, measured, wanted, verdict = OPS_TARGET.fullmatch(line).groups()
        rows.append([name, f"{wanted} x", measured, verdict])
    timed = _timed(throughput.get("paths", {}))
    fast = [timed[name] for name in ("fast", "fast_eager") if name in timed]
    swept = [
        path
        for entry in throughput.get("batches", {}).values()
        for path in _timed(entry["paths"]).values()
    ]
    best = _highest("clips_per_s", fast)
    for peer in ("videomae", "videomae_compiled"):
        mine, theirs = (timed.get(name, {}).get("clips_per_s") for name in ("random", peer))
        text = f"{mine / theirs:.2f} x" if mine and theirs else "not measured"
        rows.append([f"random masks, ours over {peer}", "-", text, "-"])
    for baseline, least in STEP_TARGETS:
        ratio = best / timed[baseline]["clips_per_s"] if fast and baseline in timed else None
        name = f"whole step over {baseline}, K=1"
        rows.append(_target(name, f"{least} x", ratio, "{:.2f} x", (ratio or 0) >= least))
    keys = ("clips_per_s", "mfu_data_sheet", "mfu")
    rate, sheet, mfu = (_highest(key, [*fast, *swept]) for key in keys)
    slope = next(reversed(memory_slopes(throughput).values()), None)
    gigabytes = None if slope is None else slope * 2**20 / 1e9
    fast_enough, busy_enough = (rate or 0) >= CLIPS_TARGET, (sheet or 0) >= MFU_TARGET
    wanted, most = f"{CLIPS_TARGET:,.0f}", f"at most {ACTIVATION_TARGET_GB} GB"
    small_enough = (gigabytes or 0) <= ACTIVATION_TARGET_GB
    return [
        *rows,
        _target("clips/s, K=1, best batch", wanted, rate, "{:,.0f}", fast_enough),
        _target("MFU of the data sheet", f"{MFU_TARGET:.0%}", sheet, "{:.1%}", busy_enough),
        ["MFU of the measured product", "-", "not measured" if mfu is None else f"{mfu:.1%}", "-"],
        _target("activations per clip", most, gigabytes, "{:.3f} GB", small_enough),
        ["data wait with DALI", "below 3%", "not measured here", "-"],
    ]


def _timed(paths: dict[str, Any]) -> dict[str, Any]:
    return {name: path for name, path in paths.items() if "clips_per_s" in path}


def _highest(key: str, paths: list[dict[str, Any]]) -> float | None:
    return max((path[key] for path in paths if path[key] is not None), default=None)


def _target(name: str, wanted: str, value: float | None, form: str, met: bool) -> list[str]:
    if value is None:
        return [name, wanted, "not measured", "-"]
    return [name, wanted, form.format(value), "met" if met else "missed"]


def memory_slopes(throughput: dict[str, Any]) -> dict[str, float]:
    """By batch, MiB that each clip more than the batch before added to the peak of ``fast``:
    weights, optimizer and gradients cancel in the difference."""
    peaks: dict[int, float] = {}
    for batch, entry in throughput.get("batches", {}).items():
        if peak := entry["paths"].get("fast", {}).get("peak_mem_mb"):
            peaks[int(batch)] = peak
    return {
        str(large): (peaks[large] - peaks[small]) / (large - small)
        for small, large in pairwise(sorted(peaks))
    }


def _environment(environment: dict[str, Any] | None) -> str:
    if environment is None:
        return "environment.json was not written."
    lines = bench.provenance(environment, "torch", "cuda", "triton")
    lines += [
        f"measured {name}: {m['bandwidth'] / 1e9:,.0f} GB/s, {m['rate'] / 1e12:,.3g} TFLOP/s"
        for name, m in environment["measured"].items()
    ]
    lines.append("missing: " + (", ".join(environment["missing"]) or "nothing"))
    return "\n".join(f"- {line}" for line in lines)


def _tests(tests: dict[str, Any] | None) -> str:
    if tests is None:
        return ""
    kinds = ("passed", "failed", "skipped", "not_run")
    numbers = ", ".join(f"{tests[kind]} {kind.replace('_', ' ')}" for kind in kinds)
    failures = [f"- `{name}`: {bench.reason(text)}" for name, text in tests["failures"].items()]
    return "\n".join([f"{numbers} in {tests['seconds']} s", *failures[:30]])


def _steps(throughput: dict[str, Any]) -> str:
    parts = []
    for record in (throughput, throughput.get("k2", {})):
        if "config" in record:
            config, paths = record["config"], record["paths"]
            peak = f", MFU of {config['peak_tflops']:.4g} TFLOP/s" if config["peak_tflops"] else ""
            source = f" ({config['peak_source']})" if peak else ""
            inner, batch = config["inner_epochs"], config["batch"]
            parts.append(f"K = {inner}, batch {batch}{peak}{source}")
            parts.append(step_results(config, paths, bench.markdown))
            untimed = {name: path for name, path in paths.items() if name not in _timed(paths)}
            parts += [f"- {name} {' '.join(*path.items())}" for name, path in untimed.items()]
    return "\n\n".join(filter(None, parts))


def _sweep(throughput: dict[str, Any]) -> str:
    slopes, rows = memory_slopes(throughput), []
    for batch, entry in throughput.get("batches", {}).items():
        for name, path in _timed(entry["paths"]).items():
            mfu = "-" if path["mfu"] is None else f"{path['mfu']:.1%}"
            sheet = path["mfu_data_sheet"]
            mfu += "" if sheet is None else f" ({sheet:.1%} of the data sheet)"
            memory = [bench.number(path["peak_mem_mb"], 0), bench.number(slopes.get(batch))]
            rows.append([batch, name, bench.number(path["clips_per_s"]), mfu, *memory])
    table = _table(["batch", "path", "clips/s", "MFU", "peak MiB", "MiB per added clip"], rows)
    return f"{table}\n\nPaths are compared at batch {BATCH}." if table else ""


def _ops(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    rows = []
    for op, cases in record["ops"].items():
        for case, entries in cases.items():
            for name, entry in entries.items():
                if "failed" in entry:
                    rows.append([op, case, name, f"failed: {entry['failed']}", *["-"] * 4])
                elif "fwd_bwd_ms" in entry and "fwd_bwd_ms" in entries.get("reference", {}):
                    gain = f"{speedup(entry, entries['reference']):.2f}"
                    cells = [bench.number(entry["fwd_bwd_ms"]["p50"], 3), gain]
                    cells += [f"{entry['roofline']:.1%}", bench.number(entry["peak_mem_mb"], 0)]
                    rows.append([op, case, name, *cells, f"{entry['max_rel_err']:.1e}"])
    header = ["op", "case", "implementation", "p50, ms", "x reference", "of the roofline"]
    table = _table([*header, "peak MiB", "max rel err"], rows)
    return f"{ceilings_line(record)}\n\n{table}"


def _tuning(record: dict[str, Any] | None) -> str:
    rows = [
        [name, entry["skipped"], "-", "-"]
        if "skipped" in entry
        else [name, entry["chosen"], entry["fastest"] or "none ran", bench.number(entry["gain"], 3)]
        for name, entry in (record or {"tunables": {}})["tunables"].items()
    ]
    return _table(["kernel", "chosen", "fastest", "chosen / fastest"], rows)
