"""Real processes on a disk that is full: a sentence, and the training goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from project import ROOT
from records import read_lines
from run_processes import TRAIN, finish, start

from tats_fast.config import save_config
from tats_fast.engine.finite import SkippedSteps
from tats_fast.engine.logs import RunLog
from tats_fast.run_folder import damage, list_checkpoints

FULL_FOR_ONE = """
import sys
sys.path.insert(0, {support!r})
import torch
from legs import main

save = torch.save

def full(content, file, *rest, **kept):
    path = str(getattr(file, "name", "") if hasattr(file, "write") else file)
    if "step_000004" in path and "optimizer.pt" in path:
        # In the words of torch.save on a full disk.
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    return save(content, file, *rest, **kept)

torch.save = full
main()
"""


def test_lines_without_room_end_nothing(tmp_path):
    log, skipped = RunLog(tmp_path, -1, 10, ()), SkippedSteps(tmp_path, 10, writes=True)
    files = [tmp_path / name for name in ("metrics.jsonl", "eval.jsonl", "skipped_steps.jsonl")]
    for step in (1, 2):
        for file in files:
            if step == 1:
                file.symlink_to("/dev/full")
            else:
                file.unlink()
        log.metrics({"step": step, "clips_per_s": 1.0})
        log.evaluation({"step": step}, "")
        skipped.note(step, [True], [[]])
    log.close()
    assert [[row["step"] for row in read_lines(file)] for file in files] == [[1, 2]] * 3


@pytest.mark.slow
def test_one_rank_that_cannot_write_costs_all_one_checkpoint(run_config, tmp_path):
    script = tmp_path / "full.py"
    script.write_text(FULL_FOR_ONE.format(support=str(ROOT / "tests/support")))
    save_config(run_config("run"), tmp_path / "run.yaml")
    engines = {"ddp": "ddp", "zero": "deepspeed", "split": "deepspeed distributed.zero_stage=3"}
    legs = [f"name={name} distributed.engine={engine}" for name, engine in engines.items()]
    arguments = [part for leg in legs for part in ("--leg", leg)]
    output = finish(
        start(tmp_path / "run.yaml", *arguments, launcher="torchrun", script=str(script))
    )
    lines = [line for line in output.splitlines() if "could not be saved" in line]
    assert len(lines) == len(engines)
    expected = "step 4 could not be saved (No space left on device); training goes on"
    assert all(expected in line for line in lines)
    for name in engines:
        names = [folder.name for folder in list_checkpoints(tmp_path / name)]
        assert names == ["step_000002", "step_000006"]


@pytest.mark.slow
def test_a_full_file_system(run_config, tmp_path):
    """Two checkpoints fit on it, and no third."""
    mount = tmp_path / "small"
    mount.mkdir()
    config = run_config("run", train={"steps": 8})
    save_config(config, tmp_path / "run.yaml")
    train = f"{sys.executable} {TRAIN} --config {tmp_path}/run.yaml output_dir={mount}"
    inside = f"mount -t tmpfs -o size=2000k tmpfs {mount} && {{ {train}; code=$?; "
    inside += f"cp -r {mount}/run {tmp_path}/kept; exit $code; }}"
    mounts = ["unshare", "-m", "true"]
    if shutil.which("unshare") is None or subprocess.run(mounts, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", inside],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    expected = "step 6 could not be saved (No space left on device); training goes on"
    assert sum(expected in line for line in lines) == 1
    (error,) = [line for line in lines if line.startswith("error:")]
    assert "step 8 could not be saved" in error and "step_000004" in error
    kept = list_checkpoints(tmp_path / "kept")
    assert [folder.name for folder in kept] == ["step_000002", "step_000004"]
    assert not any(map(damage, kept))
    assert not list((tmp_path / "kept" / "checkpoints").glob(".*"))
