"""The text of decode.py's record, for the terminal or as Markdown."""

from __future__ import annotations

from typing import Any

from parts import bench

RATES = ("files", "backend", "clips/s p20", "p50", "p80", "CPU ms/clip", "x raw", "x raw, by CPU")
WAITS = ("files, backend", "waiting p20 %", "p50 %", "p80 %", "clips/s")
WAITS += ("waits, ms/clip", "steps, ms/clip")
PERCENTILES = ("p20", "p50", "p80")


def describe(record: dict[str, Any]) -> str:
    """Where, with what, and on which files."""
    config = record["config"]
    lines = bench.provenance(record, "av")
    lines.append(
        f"{config['videos']} videos; {config['workers']} worker processes; "
        f"{config['clips']} clips a round, {config['repeats']} rounds and one to warm up"
    )
    for name, facts in record["sources"].items():
        files = facts["files"][:4] + ["..."] * (len(facts["files"]) > 4)
        lines.append(f"{name}: {facts['megabytes']:.1f} MB; {'; '.join(files)}")
    return "\n".join(lines)


def results(record: dict[str, Any], markdown: bool) -> str:
    """The table of what was timed, and below it what was not, and why."""
    rows, refused = [], {}
    for case, entries in record["decoding"].items():
        for backend, entry in entries.items():
            if "refused" in entry:
                refused.setdefault((backend, entry["refused"]), []).append(case)
                continue
            cells = [bench.number(entry["clips_per_s"][p]) for p in PERCENTILES]
            cells.append(bench.number(entry["cpu_ms_per_clip"]["p50"], 0))
            cells += [bench.number(entry[key], 2) for key in ("x_raw", "x_raw_cpu")]
            rows.append([case, backend, *cells])
    notes = [f"not timed: {name}: {why}" for name, why in record["unavailable"].items()]
    for (name, why), cases in refused.items():
        notes.append(f"not timed: {name} on {'; '.join(cases)}: {why}")
    notes.append(
        "x raw: over PyAV on the raw files at the same stride in the same round, by clips/s and by "
        "CPU time; median of the rounds"
    )
    return _text(RATES, rows, notes, markdown)


def training_results(record: dict[str, Any], markdown: bool) -> str:
    """The table of ``--training``."""
    rows = []
    for name, entry in record["training"].items():
        cells = [bench.number(100 * entry["data_wait_frac"][p]) for p in PERCENTILES]
        cells.append(bench.number(entry["clips_per_s"]["p50"]))
        cells += [bench.number(entry[key]) for key in ("wait_ms_per_clip", "step_ms_per_clip")]
        rows.append([name, *cells])
    notes = [
        "waiting: data_wait_frac, the share of training time without a batch; the steps compete "
        "with the workers for the cores"
    ]
    notes += [
        f"{name}: {entry['host_decoded_frac']:.0%} of the windows fell back to PyAV"
        for name, entry in record["training"].items()
        if entry["host_decoded_frac"] > 0 and "dali" in name
    ]
    return _text(WAITS, rows, notes, markdown)


def _text(header: tuple, rows: list[list[str]], notes: list[str], markdown: bool) -> str:
    table, bullet = (bench.markdown, "- ") if markdown else (bench.table, "")
    return "\n".join([table(header, rows), "", *(bullet + note for note in notes)])
