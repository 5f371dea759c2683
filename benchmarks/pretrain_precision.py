"""Real pretraining through the loader, in bf16 and in fp32 from the same seed: losses and waiting.

    python benchmarks/pretrain_precision.py --steps 60 --batch 32 --limit 60 --json pretrain.json

``tats-fast pretrain`` on the bundled clips, twice, each in a process of its own with half the time.
Both see the same clips in the same order and draw from the same seeds, so losses may differ by
rounding only until the sampler's draws part; one that learns in fp32 and not in bf16 is a fault.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from parts import ROOT, bench
from parts.isolate import run_child

from tats_fast.cli import main as tats_fast
from tats_fast.engine.distributed import pick_device

PRECISIONS = ("bf16", "fp32")
RUN = "run"


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--steps", type=bench.positive_int, default=60, help="of each run (default: %(default)s)")
    add("--batch", type=bench.positive_int, default=32)
    add("--limit", type=bench.positive_float, default=60.0, help="seconds for both runs")
    cores = os.cpu_count() or 2
    add("--workers", type=bench.natural_int, default=max(1, cores - 2), help="of the loader")
    add("--json", metavar="FILE", help="write the record, after each run")
    add("--run", nargs=2, metavar=("PRECISION", "FOLDER"), help="used by this script on itself")
    add("overrides", nargs="*", metavar="key=value", help="configuration, such as model.depth=2")
    return parser


def train(options: Any) -> int:
    """One run in this process."""
    precision, folder = options.run
    settings = {
        "name": RUN,
        "output_dir": folder,
        "device": options.device,
        "data.train": ROOT / "demo" / "clips" / "train",
        "data.workers": options.workers,
        "data.stride": 2,
        "masking.ratio": 0.95,
        "optim.base_lr": 2.4e-3,  # a loss that falls within these few steps
        "optim.warmup_frac": 0.2,
        "ppo.epochs": 1,
        "train.batch_size": options.batch,
        "train.steps": options.steps,
        "train.log_every": max(1, options.steps // 20),
        "train.checkpoint_every": options.steps,
        "train.precision": precision,
        "train.image_every": 0,
    }
    return tats_fast(
        ["pretrain", *(f"{key}={value}" for key, value in settings.items()), *options.overrides]
    )


def outcome(folder: Path) -> dict[str, Any] | None:
    """What a run logged: losses by step, medians of the rest; None where it logged nothing."""
    file = folder / RUN / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = [row for row in rows if "loss_recon" in row]
    if not rows:
        return None
    later = rows[len(rows) // 2 :]
    middle = {
        key: median(row[key] for row in later)
        for key in ("clips_per_s", "data_wait_frac")
        if all(row.get(key) is not None for row in later)
    }
    return {"loss_recon": {str(row["step"]): row["loss_recon"] for row in rows}, **middle}


def apart(runs: dict[str, dict[str, Any]]) -> float | None:
    """Largest relative difference of the two runs' losses at the steps that both logged."""
    one, other = (runs.get(name, {}).get("loss_recon", {}) for name in PRECISIONS)
    shared = [abs(one[step] - other[step]) / abs(other[step]) for step in one.keys() & other]
    return max(shared, default=None)


def run(options: Any) -> int:
    """Both runs; 1 where one of them fails or trains nothing."""
    if options.run:
        return train(options)
    device = pick_device(options.device)
    record = bench.new_record(device)
    settings = ("steps", "batch", "workers", "overrides")
    record["config"] = {name: getattr(options, name) for name in settings}
    record["pretrain"] = {}
    failed = False
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--run", precision, folder, "--device", device.type]
            for name in ("steps", "batch", "workers"):
                arguments += [f"--{name}", str(getattr(options, name))]
            script = Path(__file__).name
            problem = run_child(script, [*arguments, *options.overrides], options.limit / 2)
            entry = outcome(Path(folder))
        failed |= entry is None
        record["pretrain"][precision] = (entry or {}) | ({"ended": problem} if problem else {})
        record["largest_difference"] = apart(record["pretrain"])
        if options.json:
            bench.write_json(options.json, record)
    print(describe(record))
    return int(failed)


def describe(record: dict[str, Any]) -> str:
    """Losses side by side, and how the runs went."""
    runs = record["pretrain"]
    losses = [runs[name].get("loss_recon", {}) for name in PRECISIONS]
    steps = sorted({int(step) for each in losses for step in each})
    rows = [[str(s), *(bench.number(each.get(str(s)), 5) for each in losses)] for s in steps]
    lines = [bench.table(["step", *PRECISIONS], rows)]
    for name in PRECISIONS:
        rate, wait = (runs[name].get(key) for key in ("clips_per_s", "data_wait_frac"))
        waiting = bench.number(None if wait is None else 100 * wait)
        ended = f"; {runs[name]['ended']}" if "ended" in runs[name] else ""
        lines.append(f"{name}: {bench.number(rate)} clips/s, {waiting}% of it waiting{ended}")
    difference = record["largest_difference"]
    if difference is not None:
        lines.append(f"losses at the same step differ by {100 * difference:.2f}% at most")
    return "\n".join(lines)


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
