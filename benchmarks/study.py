"""Masking strategies compared: which selection of visible tokens gives the better encoder.

    python benchmarks/study.py gpu10 --out runs/study --limit 540

One YAML file says what is compared (benchmarks/studies, or a file of your own). Every finished cell
has a file in ``--out``; the same command goes on where it was, and ``--report`` makes table,
pictures and page from what is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import bench
from parts.study import report
from parts.study.clips import LabelledClips, ProbeSet, make_probe, make_source, unseen
from parts.study.measures import LOSS_CLIPS, accuracy, chance, finetune, looks, start_probes
from parts.study.spec import MEASURES, SUPERVISED, UNTRAINED, Cell, Study, read_study
from parts.study.training import CellRun, supervised, train_pack

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import pick_device

DECODED = "decoded"
"""Folder in ``--out`` of listed videos' decoded clips."""
Records = dict[str, dict[str, Any]]


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("study", help="name of a preset in benchmarks/studies, or a YAML file")
    add("changes", nargs="*", metavar="key=value", help="other values for entries of the file")
    add("--out", required=True, metavar="DIR", help="folder of the cells' files")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--limit", type=bench.positive_float, help="seconds after which no pack is begun")
    help_ = "cells trained at once (default: on a GPU all that see the same clips, else 1)"
    add("--side-by-side", type=bench.positive_int, metavar="N", help=help_)
    help_ = "of the packs only every N-th from the I-th (default: 0/1)"
    add("--part", type=every_nth, default=slice(None), metavar="I/N", help=help_)
    add("--list", action="store_true", help="print the cells and how many are done, and end")
    add("--report", action="store_true", help="only make table, pictures and page")
    help_ = f"whom the differences in brackets are to (default: {report.BASELINE})"
    add("--against", default=report.BASELINE, metavar="STRATEGY", help=help_)
    return parser


def every_nth(text: str) -> slice:
    """An argparse type: ``1/4`` -> every fourth from the second."""
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and int(first) < int(step)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I below N")
    return slice(int(first), None, int(step))


def run(options: Any) -> int:
    """Train and measure the cells that are not there yet, then report."""
    study, out = read_study(options.study, options.changes), Path(options.out)
    if options.against not in study.strategies:
        raise ConfigError(
            f"--against {options.against}: must be one of {', '.join(study.strategies)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    if options.list:
        return listed(study, out)
    if not options.report:
        device = pick_device(options.device)
        side = options.side_by_side or (10**6 if device.type == "cuda" else 1)
        work(study, out, device, side, options.limit, options.part)
    # What an earlier version measured can be shown again, but not gone on with.
    return report.write(study, finished(study, out, options.report), out, options.against)


def listed(study: Study, out: Path) -> int:
    """Print what there is to do."""
    done = finished(study, out)
    for cell in (cell for pack in study.packs() for cell in pack):
        print(f"{'done' if cell.key in done else 'open'}  {cell.steps:>6} steps  {cell.key}")
    return 0


def finished(study: Study, out: Path, earlier: bool = False) -> dict[str, dict[str, Any]]:
    """The records of cells that are there and belong to this study as it is, by key: of each
    its own file, or what the last report put together. ``earlier``: where none does, those of an
    earlier version of the measures."""
    reported, there = report.stored(out), []
    for cell in (cell for pack in study.packs() for cell in pack):
        file = out / f"{cell.key}.json"
        record = json.loads(file.read_text()) if file.exists() else reported.get(cell.key)
        if record is not None:
            there.append((cell, record))
    records = {cell.key: record for cell, record in there if cell.is_of(record)}
    if records or not earlier:
        return records
    return {cell.key: record for cell, record in there if cell.is_of(record, earlier=True)}


def work(
    study: Study,
    out: Path,
    device: torch.device,
    side: int,
    limit: float | None,
    part: slice,
) -> None:
    """Go through the packs, ``side`` cells at a time."""
    end = None if limit is None else time.monotonic() + limit
    done, environment = finished(study, out), bench.new_record(device)
    sets: dict[str, ProbeSet] | None = None
    # Spawned: a process with a CUDA context must not be forked.
    context = multiprocessing.get_context("spawn")
    cores = max(1, len(os.sched_getaffinity(0)) - 1)
    with ProcessPoolExecutor(min(cores, 12), context) as pool, ThreadPoolExecutor(1) as writer:
        longest, written = 0.0, []
        for pack in study.packs()[part]:
            cells = [cell for cell in pack if cell.key not in done]
            for first in range(0, len(cells), side):
                begun = time.monotonic()
                if end is not None and begun + longest > end:
                    print("the time is up; the same command goes on from here", flush=True)
                    return _raise_failures(written, wait=True)
                if sets is None:
                    model = cells[0].config.model
                    sets = {
                        name: make_probe(settings, model, device, out / DECODED)
                        for name, settings in study.probes.items()
                    }
                records = train(cells[first : first + side], sets, device, pool, out)
                # Probes of these are fitted on other cores while the next cells train.
                written.append(writer.submit(_write, records, out, environment))
                _raise_failures(written, wait=False)
                longest = max(longest, time.monotonic() - begun)
        _raise_failures(written, wait=True)


def _raise_failures(written: list[Future[None]], wait: bool) -> None:
    """Of the records that could not be written; ``wait`` for those still at work."""
    for job in written:
        if wait or job.done():
            job.result()


def _write(records: Records, out: Path, environment: dict[str, Any]) -> None:
    """Wait for the cells' probes and write their files."""
    for key, record in records.items():
        for entry in record.get("curve", ()):
            entry |= {name: job.result() for name, job in entry.pop("probes").items()}
        bench.replace_json(out / f"{key}.json", {**record, **environment})


def train(
    cells: list[Cell],
    sets: dict[str, ProbeSet],
    device: torch.device,
    pool: ProcessPoolExecutor,
    out: Path,
) -> Records:
    """Train and measure cells that see the same clips; their records by key, in which ``probes``
    are still at work."""
    study, (data, seed) = cells[0].study, (cells[0].data, cells[0].seed)
    model = cells[0].config.model
    source = make_source(study.data[data], model, seed, device, out / DECODED)
    by_chance = {name: chance(part.test) for name, part in sets.items()}
    records = {cell.key: {**describe(cell), "chance": by_chance} for cell in cells}
    own = _clips_of(study, cells[0], sets, device)
    runs = [CellRun(cell, device) for cell in cells if cell.strategy != SUPERVISED]
    jobs: dict[str, list[dict[str, Any]]] = {cell.key: [] for cell in cells}

    def measure(step: int) -> None:
        now = [one for one in runs if one.done in (step, one.cell.steps)]
        now = [one for one in now if one.done not in [e["step"] for e in jobs[one.cell.key]]]
        last = [one for one in now if one.done == one.cell.steps]
        for one, probes in zip(now, start_probes(pool, now, sets, last), strict=True):
            entry = {"step": one.done, **looks(one, own), "probes": probes}
            jobs[one.cell.key].append(entry)

    everyone, runs = runs, [one for one in runs if one.cell.strategy == UNTRAINED]
    measure(0)
    runs = [one for one in everyone if one.cell.strategy != UNTRAINED]
    if runs:
        last = max(one.cell.steps for one in runs)
        stops = sorted({last * (i + 1) // study.curve for i in range(study.curve)})
        for step, seconds in train_pack(runs, source, study.batch_size, stops):
            measure(step)
            state = ", ".join(
                f"{one.cell.strategy} {jobs[one.cell.key][-1]['loss']:.3f}" for one in runs
            )
            print(
                f"{cells[0].data} seed {cells[0].seed} step {step}: {seconds:.0f} s; loss {state}",
                flush=True,
            )
            for one in runs:
                records[one.cell.key]["seconds"] = seconds / len(runs)
    for one in everyone:  # the starting weights too: from scratch
        for shots in study.shots:
            tuned = {
                f"{k}_tuned{shots}": finetune(one.cell, one.encoder, v, shots)
                for k, v in sets.items()
            }
            records[one.cell.key].update(tuned)
    for cell in cells:
        if cell.strategy == SUPERVISED:
            classifier = supervised(cell, source, device)
            records[cell.key]["supervised"] = accuracy(classifier, own)
    for key, entries in jobs.items():
        records[key]["curve"] = entries
    return records


def _clips_of(
    study: Study, cell: Cell, sets: dict[str, ProbeSet], device: torch.device
) -> LabelledClips:
    """Clips like those that the cell trains on, for its loss and where it looks. Of listed videos
    all are trained on: there those of the first probe."""
    if cell.data in sets:
        return sets[cell.data].test
    settings = study.data[cell.data]
    if "train" in settings:
        return next(iter(sets.values())).test
    return unseen(settings, cell.config.model, 2 * LOSS_CLIPS, device)


def describe(cell: Cell) -> dict[str, Any]:
    """The head of a cell's record."""
    names = ("data", "ratio", "strategy", "seed", "budget", "steps")
    known = {"fingerprint": cell.fingerprint(), "circumstances": cell.circumstances()}
    known["measures"] = MEASURES
    return {name: getattr(cell, name) for name in names} | known


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
