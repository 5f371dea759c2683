"""Kill training again and again, and compare what it leaves with an undisturbed run, bit by bit.

    python tests/support/soak.py --kills 50

Each engine gets so many kills, of the whole run, of one rank or of its launcher, every second one
aimed into the writing of a checkpoint. Prints a table; fails where a number differs.

    python tests/support/soak.py --kills 6 --engines ddp zero3 --ranks 4
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
import yaml
from children import gone
from deepspeed_op import use_own_folder
from project import ROOT, TINY_MODEL
from records import read_lines
from run_processes import finish, ranks_below, start, steps

from tats_fast.run_folder import MODEL_FILE, damage, list_checkpoints, read_tensors
from tats_fast.weights_file import read_state

STAGE_3 = "distributed.zero_stage=3 distributed.deepspeed_config=split.json"
ENGINES = {
    "plain": ("python", ()),
    "ddp": ("torchrun", ()),
    "zero1": ("deepspeed", ("distributed.zero_stage=1",)),
    "zero2": ("deepspeed", ("distributed.zero_stage=2",)),
    "zero3": ("deepspeed", tuple(STAGE_3.split())),
}
"""Launcher and settings."""
SPLIT = {"zero_optimization": {"stage3_param_persistence_threshold": 2048}}
"""So that stage 3 splits all matrices, however small the model is."""
TIMES = (
    *("clips_per_s", "data_wait_frac", "data_wait_frac_max", "tflops", "replaced_workers"),
    *("peak_mem_mb", "peak_mem_mb_max", "exchange_wait_frac_min", "exchange_wait_frac_max"),
    *("busy_s_min", "busy_s_max", "slowest_rank"),
)
"""What a line says about the process and not about the training."""
PER_KILL = 12
"""Steps that a run is longer for every kill it is to survive."""
AFTER = 48
"""Steps after the last kill: a kill that waits for a checkpoint's writing may come that late."""


def soak(folder: Path, engine: str, kills: int, seed: int = 0, ranks: int = 2) -> dict[str, Any]:
    """Train twice, once undisturbed and once with ``kills`` kills, in ``ranks`` processes (plain
    training in one).

    Returns:
        Counts: ``kills`` by kind, ``into_saving`` (a checkpoint was being written), ``rows`` and
        ``tensors`` compared, ``differing_rows`` and ``differing_tensors``.
    """
    launcher, extra = ENGINES[engine]
    total = PER_KILL * kills + AFTER
    (folder / "split.json").write_text(json.dumps(SPLIT))
    for name in ("straight", "killed"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(_tree(folder, name, total)))
    how = {"launcher": launcher, "ranks": ranks}
    finish(start(folder / "straight.yaml", *extra, **how), seconds=1200)
    chance, done, run = random.Random(seed), Counter(), folder / "killed"
    for number in range(kills):
        process = start(folder / "killed.yaml", *extra, **how)
        done[_kill(process, run, launcher, chance, PER_KILL * (number + 1), number % 2 == 0)] += 1
        if list((run / "checkpoints").glob(".*")):
            done["into_saving"] += 1
    finish(start(folder / "killed.yaml", *extra, **how), seconds=1200)
    into_saving = done.pop("into_saving", 0)
    return {"kills": dict(done), "into_saving": into_saving, **compare(folder / "straight", run)}


def _tree(folder: Path, name: str, total: int) -> dict[str, Any]:
    return {
        "name": name,
        "output_dir": str(folder),
        "device": "cpu",
        "model": TINY_MODEL,
        "masking": {"ratio": 0.75},
        "data": {"train": str(ROOT / "demo/clips/train"), "workers": 1, "stride": 1},
        "optim": {"base_lr": 0.05},
        "train": {
            **{"batch_size": 4, "steps": total, "log_every": 1, "image_every": 0},
            **{"checkpoint_every": 3, "precision": "fp32"},
        },
    }


def _kill(
    process: Popen, run: Path, launcher: str, chance: random.Random, step: int, saving: bool
) -> str:
    """End the run with SIGKILL once it is at ``step``; returns who was killed."""
    # Further where the killing before left its ranks a second to see that their launcher is gone.
    step = max([step, *(last + 1 for last in steps(run)[-1:])])
    writing = f".writing_step_{(step + 2) // 3 * 3:06d}"
    deadline = time.monotonic() + 200
    while (steps(run) or [0])[-1] < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    until = time.monotonic() + 1.0
    while saving and time.monotonic() < until and process.poll() is None:
        if (run / "checkpoints" / writing).exists():
            break
    time.sleep(chance.random() * 0.01)
    ranks = [process.pid] if launcher == "python" else ranks_below(process.pid)
    assert ranks, f"nothing trains: {_output_of(process)}"
    kind = "whole run" if launcher == "python" else chance.choice(["whole run", "rank", "launcher"])
    victims = {"whole run": {process.pid, *ranks}, "rank": {chance.choice(ranks)}}
    for pid in victims.get(kind, {process.pid}):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert all(gone(pid, within=60) for pid in ranks), f"{kind}: a rank is left"
    process.communicate(timeout=60)
    return kind


def _output_of(process: Popen) -> str:
    process.kill()
    return process.communicate()[0]


def compare(one: Path, two: Path) -> dict[str, int]:
    """Logged rows and the last checkpoint's tensors of two runs."""
    rows = [
        [
            {k: v for k, v in row.items() if k not in TIMES}
            for row in read_lines(run / "metrics.jsonl")
        ]
        for run in (one, two)
    ]
    pairs = list(zip(*rows, strict=False))
    last = [list_checkpoints(run)[-1] for run in (one, two)]
    assert last[0].name == last[1].name and not any(map(damage, last))
    tensors = [dict(_tensors(folder)) for folder in last]
    assert tensors[0].keys() == tensors[1].keys()
    differing = [name for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])]
    return {
        "rows": len(rows[0]),
        "tensors": len(tensors[0]),
        "differing_rows": sum(a != b for a, b in pairs) + abs(len(rows[0]) - len(rows[1])),
        "differing_tensors": len(differing),
    }


def _tensors(folder: Path):
    yield from _leaves(read_state(folder / MODEL_FILE), MODEL_FILE)
    for path in sorted(folder.rglob("*.pt")):
        yield from _leaves(read_tensors(path), str(path.relative_to(folder)))


def _leaves(tree: Any, where: str):
    if isinstance(tree, torch.Tensor):
        yield where, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{where}.{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{where}.{index}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="per engine (default: 50)")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    use_own_folder()
    failed = False
    print("| engine | processes | kills | into saving | rows | differing | tensors | differing |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for engine in options.engines:
        with tempfile.TemporaryDirectory() as folder:
            found = soak(Path(folder), engine, options.kills, options.seed, options.ranks)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found["kills"].items()))
        numbers = ("into_saving", "rows", "differing_rows", "tensors", "differing_tensors")
        processes = "1" if engine == "plain" else str(options.ranks)
        cells = [engine, processes, kinds, *(str(found[name]) for name in numbers)]
        print(f"| {' | '.join(cells)} |", flush=True)
        failed |= bool(found["differing_rows"] or found["differing_tensors"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
