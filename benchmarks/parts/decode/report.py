"""The text of decode.py's record, for the terminal or as Markdown."""

from __future__ import annotations

from typing import Any

from parts import bench

HEADER = (
    *("files", "backend", "clips/s p20", "p50", "p80"),
    *("CPU ms/clip", "x raw", "x raw, by CPU"),
)
TRAINING_HEADER = (
    *("files, backend", "waiting p20 %", "p50 %", "p80 %", "clips/s"),
    *("waits, ms/clip", "steps, ms/clip"),
)


def describe(record: dict[str, Any]) -> str:
    """Where, with what, and on which files."""
    config, used = record["config"], record["versions"]
    lines = [
        bench.hardware_line(record["hardware"]),
        f"tats-fast {used['tats_fast']} at {record['commit'] or 'unknown commit'}, "
        f"PyAV {used['av']}",
        f"{config['videos']} videos; {config['workers']} worker processes; "
        f"{config['clips']} clips a round, {config['repeats']} rounds and one to warm up",
    ]
    for name, facts in record["sources"].items():
        shown = facts["files"][:4] + ["..."] * (len(facts["files"]) > 4)
        lines.append(f"{name}: {facts['megabytes']:.1f} MB; {'; '.join(shown)}")
    return "\n".join(lines)


def results(record: dict[str, Any], markdown: bool) -> str:
    """The table of what was timed, and below it what was not, and why."""
    rows, refused = [], {}
    for case, entries in record["decoding"].items():
        for backend, entry in entries.items():
            if "refused" in entry:
                refused.setdefault((backend, entry["refused"]), []).append(case)
                continue
            rate = entry["clips_per_s"]
            rows.append(
                [
                    *(case, backend, *(bench.number(rate[p]) for p in ("p20", "p50", "p80"))),
                    bench.number(entry["cpu_ms_per_clip"]["p50"], 0),
                    *(bench.number(entry[key], 2) for key in ("x_raw", "x_raw_cpu")),
                ]
            )
    notes = [f"not timed: {name}: {why}" for name, why in record["unavailable"].items()]
    for (name, why), cases in refused.items():
        notes.append(f"not timed: {name} on {'; '.join(cases)}: {why}")
    notes.append(
        "x raw: over PyAV on the raw files at the same stride in the same round, by clips/s and by "
        "CPU time; median of the rounds"
    )
    return _together(HEADER, rows, notes, markdown)


def training_results(record: dict[str, Any], markdown: bool) -> str:
    """The table of ``--training``."""
    rows = []
    for name, entry in record["training"].items():
        wait = entry["data_wait_frac"]
        rows.append(
            [
                *(name, *(bench.number(100 * wait[p]) for p in ("p20", "p50", "p80"))),
                bench.number(entry["clips_per_s"]["p50"]),
                bench.number(entry["wait_ms_per_clip"]),
                bench.number(entry["step_ms_per_clip"]),
            ]
        )
    notes = [
        "waiting: data_wait_frac, the share of training time without a batch; the steps compete "
        "with the workers for the cores"
    ]
    notes += [
        f"{name}: {entry['host_decoded_frac']:.0%} of the windows fell back to PyAV"
        for name, entry in record["training"].items()
        if entry["host_decoded_frac"] > 0 and "dali" in name
    ]
    return _together(TRAINING_HEADER, rows, notes, markdown)


def _together(header: tuple, rows: list[list[str]], notes: list[str], markdown: bool) -> str:
    shown = (bench.markdown if markdown else bench.table)(header, rows)
    if markdown:
        notes = [f"- {note}" for note in notes]
    return "\n".join([shown, "", *notes])
