"""Resuming from an earlier checkpoint starts a branch: nothing is lost, and its source stays."""

from __future__ import annotations

import signal

import pytest
import torch
from run_checks import assert_identical, weights
from run_processes import finish, start, steps, wait_for

from tats_fast.config import save_config
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import list_checkpoints
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))


def names(folder):
    return sorted(path.name for path in folder.glob("step_*"))


def test_later_checkpoints_and_lines_are_set_aside(run_config, tmp_path, demo_clips):
    train = {"steps": 8, "keep_checkpoints": 2, "eval_every": 2}
    sections = {"data": {"eval": str(demo_clips)}}
    run = tmp_path / "run"
    Trainer(run_config(train=train, **sections), CPU).run()
    assert names(run / "checkpoints") == ["step_000006", "step_000008"]
    source = run / "checkpoints" / "step_000006"
    back = {**train, "resume": str(source), "checkpoint_every": 1}
    seen = []
    trainer = Trainer(run_config(train=back, **sections), CPU)
    trainer.picture = lambda log: seen.append(names(run / "checkpoints"))
    trainer.run()
    # Of two kept checkpoints the source is none too many: it is never dropped.
    assert seen == [["step_000006"], ["step_000006", "step_000007"]]
    assert names(run / "checkpoints") == ["step_000006", "step_000007", "step_000008"]
    assert names(run / "superseded") == ["step_000008"]
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert steps(run / "superseded", name) == [8]
    assert steps(run) == [2, 4, 6, 7, 8]
    assert_identical(weights(run, 8)["model"], weights_of(run / "superseded" / "step_000008"))
    again = Trainer(run_config(train=back, **sections), CPU)
    again.run()
    assert names(run / "superseded") == ["step_000007", "step_000008", "step_000008.2"]


def weights_of(checkpoint):
    return read_state(checkpoint / "model.safetensors")


def test_a_checkpoint_from_elsewhere_begins_a_history_of_its_own(run_config, tmp_path):
    Trainer(run_config("one"), CPU).run()
    Trainer(run_config("two"), CPU).run()
    source = str(tmp_path / "one" / "checkpoints" / "step_000004")
    trainer = Trainer(run_config("two", train={"resume": source}), CPU)
    trainer.train_step = lambda batches: 1 / 0  # as if killed before its first checkpoint
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    two = tmp_path / "two"
    assert names(two / "superseded") == [f"step_00000{n}" for n in (2, 4, 6)]
    assert steps(two / "superseded") == [2, 4, 6] and steps(two) == []
    assert Trainer(run_config("two"), CPU).position.step == 4


def test_going_back_to_an_end_sets_aside_what_came_later(run_config, tmp_path, demo_clips):
    """No step is left to train, but an end is evaluated which step 4 was not before."""
    sections = {"data": {"eval": str(demo_clips)}}
    run = tmp_path / "run"
    Trainer(run_config(train={"eval_every": 6}, **sections), CPU).run()
    source = run / "checkpoints" / "step_000004"
    back = {"steps": 4, "resume": str(source)}
    for _ in range(2):  # the second has nothing left to do
        Trainer(run_config(train=back, **sections), CPU).run()
        assert names(run / "checkpoints") == ["step_000002", "step_000004"]
        assert names(run / "superseded") == ["step_000006"]
        assert steps(run) == [2, 4] and steps(run / "superseded") == [6]
        assert steps(run, "eval.jsonl") == [0, 4]
        assert steps(run / "superseded", "eval.jsonl") == [6]


def test_an_end_from_elsewhere_begins_a_history_of_its_own(run_config, tmp_path, demo_clips):
    sections = {"data": {"eval": str(demo_clips)}}
    for name in ("one", "two"):
        Trainer(run_config(name), CPU).run()
    source = tmp_path / "one" / "checkpoints" / "step_000006"
    Trainer(run_config("two", train={"resume": str(source)}, **sections), CPU).run()
    two = tmp_path / "two"
    assert names(two / "checkpoints") == ["step_000006"]
    assert names(two / "superseded") == [f"step_00000{n}" for n in (2, 4, 6)]
    assert steps(two) == [] and steps(two, "eval.jsonl") == [6]
    saved = two / "checkpoints" / "step_000006"
    assert_identical(weights_of(saved), weights_of(source))


@pytest.mark.slow
def test_killed_after_going_back(run_config, tmp_path):
    """Train to 60, go back to 40, kill at 47: ``auto`` goes on with this branch; 40 is there."""
    train = {"steps": 60, "checkpoint_every": 10, "keep_checkpoints": 3, "log_every": 1}
    save_config(run_config("run", train=train), tmp_path / "run.yaml")
    finish(start(tmp_path / "run.yaml"))
    run = tmp_path / "run"
    assert names(run / "checkpoints") == ["step_000040", "step_000050", "step_000060"]
    source = run / "checkpoints" / "step_000040"
    old = weights(run, 60)
    process = start(
        tmp_path / "run.yaml",
        f"train.resume={source}",
        "train.checkpoint_every=5",
    )
    wait_for(lambda: 60 not in steps(run) and 47 in steps(run), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(run / "superseded") == ["step_000050", "step_000060"]
    assert steps(run / "superseded") == list(range(41, 61))
    assert names(run / "checkpoints")[0] == "step_000040"
    newest = list_checkpoints(run)[-1].name
    assert newest in ("step_000045", "step_000050")
    # The explicit command still has its source, and auto continues the branch it left.
    output = finish(start(tmp_path / "run.yaml"))
    assert "step 60/60" in output
    assert steps(run) == list(range(1, 61))
    assert_identical(weights(run, 60)["model"], old["model"])
