"""A checkpoint is there whole or not at all, whenever writing it stops; damage to it is noticed."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tats_fast.config import ConfigError
from tats_fast.engine import store
from tats_fast.engine.checkpoint import NotSaved, Position, collect, write_checkpoint
from tats_fast.engine.distributed import World
from tats_fast.engine.resume import DamagedCheckpoint, checkpoint_to_resume
from tats_fast.engine.saving import Saving
from tats_fast.models.restore import load_models
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import MANIFEST_FILE, damage, list_checkpoints
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))


def small(value):
    """A learner whose model is one number."""
    return SimpleNamespace(
        world=CPU,
        runner=SimpleNamespace(optimizer_state=lambda: {"x": torch.ones(3)}),
        model_state=lambda: {"part": {"value": torch.full((4096,), value)}, "other": None},
        trainer_state=dict,
    )


def crash_at(number, work):
    """Run ``work`` in a process that ends, as by a kill, just before its ``number``-th change to
    the disk; whether it got that far."""
    pid = os.fork()
    if pid == 0:
        seen = [0]

        def hook(event, arguments):
            changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
            writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
            if event in changes or writes:
                seen[0] += 1
                if seen[0] == number:
                    os._exit(9)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def save_checkpoint(run, learner, config, position):
    """At once."""
    return write_checkpoint(run, collect(run, learner, config, position))


def save_beside(run, learner, config, position):
    """As a run does it, which trains on meanwhile."""
    saving = Saving(run)
    saving.start(collect(run, learner, config, position), None, must=True)
    saving.wait()


@pytest.mark.parametrize("save", [save_checkpoint, save_beside])
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_a_kill_at_any_instant_of_saving_leaves_a_good_checkpoint(
    run_config, tmp_path, again, save
):
    config = run_config(train={"keep_checkpoints": 1})
    save_checkpoint(tmp_path / "before", small(1.0), config, Position(step=5))
    number, whole = 0, False
    while not whole:
        number += 1
        run = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "before", run)
        position = Position(step=5 if again else 6)
        whole = not crash_at(number, lambda p=position, r=run: save(r, small(2.0), config, p))
        chosen = checkpoint_to_resume(run, "auto", CPU)
        assert chosen is not None and damage(chosen) is None, number
        value = read_state(chosen / "model.safetensors")["part"]["value"][0].item()
        assert value in (1.0, 2.0) and (value == 2.0 or not whole)
        assert not list((run / "checkpoints").glob(".*")), "leftovers are swept"
        shutil.rmtree(run)
    assert number > 10


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "optimizer.pt", "config.yaml"])
@pytest.mark.parametrize("how", ["cut", "bit", "missing"])
def test_auto_falls_back_to_the_newest_good_checkpoint(run_config, tmp_path, name, how, caplog):
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, small(float(step)), run_config(), Position(step=step))
    damaged = tmp_path / "checkpoints" / "step_000006"
    harm(damaged / name, how)
    chosen = checkpoint_to_resume(tmp_path, "auto", CPU)
    assert chosen.name == "step_000004"
    (record,) = caplog.records
    text = record.getMessage()
    assert "step_000006" in text and name in text and "\n" not in text
    with pytest.raises(DamagedCheckpoint, match=name):
        checkpoint_to_resume(tmp_path, str(damaged), CPU)


def harm(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "cut":
        content = content[: len(content) // 2]
    path.write_bytes(content)
    if how == "missing":
        path.unlink()


def test_without_one_good_checkpoint_nothing_starts_afresh(run_config, tmp_path):
    save_checkpoint(tmp_path, small(1.0), run_config(), Position(step=2))
    harm(tmp_path / "checkpoints" / "step_000002" / "model.safetensors", "bit")
    with pytest.raises(DamagedCheckpoint, match="no good checkpoint"):
        checkpoint_to_resume(tmp_path, "auto", CPU)


def test_weights_without_a_manifest_are_damaged(run_config, tmp_path):
    """There are none but with one, and safetensors have no checksums of their own."""
    for step in (2, 4):
        folder = save_checkpoint(tmp_path, small(1.0), run_config(), Position(step=step))
    (folder / MANIFEST_FILE).unlink()
    assert damage(folder) == "manifest.json is missing"
    assert checkpoint_to_resume(tmp_path, "auto", CPU).name == "step_000002"


def test_readers_notice_a_changed_weight(run_config, tmp_path):
    Trainer(run_config(train={"steps": 2, "checkpoint_every": 2}), CPU).run()
    load_models(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step_000002" / "model.safetensors"
    harm(path, "bit")
    with pytest.raises(ConfigError, match=r"damaged, model\.safetensors was changed"):
        load_models(tmp_path / "run")


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(run_config, tmp_path, monkeypatch, caplog):
    """The second of three saves fails, and the third is there."""
    seal, calls = store.seal, []

    def full_once(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder)

    monkeypatch.setattr(store, "seal", full_once)
    assert Trainer(run_config(), CPU).run().step == 6
    names = [folder.name for folder in list_checkpoints(tmp_path / "run")]
    assert names == ["step_000002", "step_000006"]
    (warning,) = [r.getMessage() for r in caplog.records if "could not be saved" in r.getMessage()]
    assert "step 4" in warning and "No space left on device" in warning
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("call", ["rename", "rmdir"])
def test_an_old_checkpoint_that_stays_does_not_unsave_the_new_one(
    run_config, tmp_path, monkeypatch, call
):
    """As on NFS, where a file that somebody has open keeps its folder."""
    config = run_config(train={"keep_checkpoints": 1})
    save_checkpoint(tmp_path, small(1.0), config, Position(step=2))
    module = Path if call == "rename" else os
    before = getattr(module, call)

    def busy(path, *rest, **named):
        if any(name in str(path) for name in (store.REMOVING, "step_000002")):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return before(path, *rest, **named)

    monkeypatch.setattr(module, call, busy)
    saved = save_checkpoint(tmp_path, small(2.0), config, Position(step=4))
    assert damage(saved) is None and list_checkpoints(tmp_path)[-1] == saved
    monkeypatch.undo()
    assert checkpoint_to_resume(tmp_path, "auto", CPU) == saved
    save_checkpoint(tmp_path, small(3.0), config, Position(step=6))
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert left == ["step_000006"]


@pytest.mark.parametrize("name", ["optimizer.pt", ".writing_model.safetensors"])
def test_a_disk_that_is_full_within_a_file(run_config, tmp_path, monkeypatch, name):
    """/dev/full takes no byte: an error from the C++ side of torch.save, or from writing weights,
    whose file has another name until it is whole."""
    learner = small(1.0)
    learner.runner.optimizer_state = lambda: {"x": torch.ones(1 << 16)}
    begin = store.begin

    def begin_on_full(final):
        (begin(final) / name).symlink_to("/dev/full")

    monkeypatch.setattr(store, "begin", begin_on_full)
    with pytest.raises(NotSaved, match="No space left on device"):
        save_checkpoint(tmp_path, learner, run_config(), Position(step=2))
    assert list_checkpoints(tmp_path) == []


def test_an_end_that_could_not_be_saved_is_no_success(run_config, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "seal", full)
    with pytest.raises(NotSaved, match=r"step 6.*No space left on device"):
        Trainer(run_config(), CPU).run()
