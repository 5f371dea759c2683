"""Pretraining on generated clips, alone or among those of files."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
from itertools import islice

import pytest
import torch
from run_checks import assert_identical, weights

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import World
from tats_fast.engine.signals import Stopped
from tats_fast.pretrain.generated import GeneratedLoader, Stream, uneven_teaching
from tats_fast.pretrain.held_out import true_motion_lifts
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


def losses(folder) -> dict[int, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss_recon"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_resume_is_bit_identical(run_config, tmp_path, share):
    train = {"log_every": 1, "checkpoint_every": 3, "accumulation": 2}
    sections = {"generated": {"share": share, "area": 0.2}, "train": train}
    Trainer(run_config("straight", **sections), CPU).run()
    stopped = Trainer(run_config("stopped", **sections), CPU)
    step = stopped.train_step

    def until_three(batches):
        if stopped.position.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(batches)

    stopped.train_step = until_three
    with pytest.raises(Stopped):
        stopped.run()
    assert stopped.position.step == 3
    Trainer(run_config("stopped", **sections), CPU).run()
    assert losses(tmp_path / "straight") == losses(tmp_path / "stopped")
    assert_identical(weights(tmp_path / "straight", 6), weights(tmp_path / "stopped", 6))


def test_without_files_no_list_is_needed(run_config, tmp_path):
    trainer = Trainer(run_config(generated={"share": 1.0}, data={"train": None}), CPU)
    assert not trainer.due_after_passes(1)
    assert "0 videos and 100% generated clips (object)" in trainer.describe()[0]
    trainer.run()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 6 and row["epoch"] is None and row["passes"] is None


def test_part_of_a_batch_needs_a_list_and_counts_its_epochs(run_config, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train=None: give a list"):
        Trainer(run_config(generated={"share": 0.5}, data={"train": None}), CPU)
    trainer = Trainer(run_config(generated={"share": 0.5}), CPU)
    trainer.run()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["epoch"] == 6 * 2 / len(trainer.videos)


def test_files_come_first_and_are_those_of_a_run_without_generated_clips(run_config):
    config = run_config(generated={"share": 0.5})
    mixed = Trainer(config, CPU).loader()
    alone = Trainer(run_config(train={"batch_size": 2}), CPU).loader()
    stream = Stream(config, 0, CPU.device)
    for number, batch, expected in zip(range(3), mixed, alone, strict=False):
        assert torch.equal(batch.clips[:2], expected.clips)
        assert torch.equal(batch.clips[2:], stream.clips(2, number))
        assert batch.keys == expected.keys
    mixed.close()
    alone.close()


def test_every_process_makes_its_own(run_config):
    config = run_config(generated={"share": 1.0}, data={"train": None})
    first, second = (Stream(config, rank, CPU.device).clips(2, 0) for rank in (0, 1))
    assert not torch.equal(first, second)


def test_a_part_of_the_generated_clips_pans(run_config):
    def clips(pans: float, count: int) -> torch.Tensor:
        made = {"share": 1.0, "pans": pans, "noise": 0.0, "area": 0.1, "distractors": 2}
        config = run_config(generated=made, train={"steps": 1})
        return Stream(config, 0, CPU.device).clips(count, 3)

    mixed, pans, still = clips(0.75, 8), clips(1.0, 6), clips(0.0, 2)
    assert torch.equal(mixed, torch.cat([pans, still]))
    # Where everything moves, hardly a pixel of a textured picture stays the same.
    stays = (pans[:, 1:] == pans[:, :-1]).float().mean((1, 2, 3, 4))
    rests = (still[:, 1:] == still[:, :-1]).float().mean((1, 2, 3, 4))
    assert stays.max() < 0.3 < 0.6 < rests.min()


@pytest.mark.parametrize(("processes", "said"), [(1, "50% pan, "), (2, "")])
def test_shares_are_said_as_they_come_out(run_config, processes, said):
    """Of so few clips in a micro-batch there is no fifth."""
    made = {"share": 0.5, "pans": 0.4}
    trainer = Trainer(run_config(generated=made), CPU)
    trainer.world = dataclasses.replace(CPU, size=processes)
    assert f"50% generated clips ({said}" in trainer._generated()
    assert ("pan" in trainer._generated()) == (processes == 1)
    none = Trainer(run_config("none", generated={"share": 0.1}), CPU)._generated()
    assert none == " and no generated clip, as generated.share=0.1 of a batch is none"


def test_a_loader_that_starts_later_goes_on(run_config):
    stream = Stream(run_config(generated={"share": 1.0}), 0, CPU.device)
    whole = [batch.clips for batch in islice(GeneratedLoader(None, stream, 2), 4)]
    later = next(iter(GeneratedLoader(None, stream, 2, first=3)))
    assert torch.equal(later.clips, whole[3])


def test_a_share_that_does_not_fill_windows_is_refused_with_one_that_does(run_config):
    sections = {"data": {"repeats": 4}, "train": {"batch_size": 16}}
    with pytest.raises(ConfigError, match=r"generated\.share=0\.4: leaves 10 of the 16") as caught:
        run_config(generated={"share": 0.4}, **sections)
    share = float(re.search(r"for example generated\.share=(\S+)", str(caught.value))[1])
    assert run_config(generated={"share": share}, **sections).windows_per_step == 2


def test_the_sampler_is_held_against_what_truly_moves(run_config):
    moving = {"share": 0.5, "area": 0.05}
    for made, measured in ((moving, True), ({"share": 0.5, "task": "pan"}, False), ({}, False)):
        trainer = Trainer(run_config(generated=made), CPU)
        learner = trainer.learner
        lifts = true_motion_lifts(trainer.config, learner.mae, learner.sampler, bf16=False)
        assert bool(lifts) == measured
        if lifts:
            assert lifts["true_motion_lift_random"] == pytest.approx(1, abs=0.15)
            # Only what moves changes, up to the sensor's noise.
            assert lifts["true_motion_lift_motion"] > 2
            assert lifts["true_motion_lift_sampler"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("pans", "batch", "cut", "every", "said"),
    [
        (0.25, 32, 1, 4, None),
        (0.25, 8, 1, 4, "1 of 4 files, 1 of 1 pans, 0 of 3 object"),
        (0.25, 32, 4, 4, "1 of 4 files, 1 of 1 pans, 0 of 3 object"),
        (0.5, 64, 1, 32, "1 of 32 files, 1 of 16 pans, 0 of 16 object"),
        (0.25, 8, 1, 1, None),
    ],
)
def test_which_sources_teach_the_sampler_is_said(tiny_config, pans, batch, cut, every, said):
    config = tiny_config(
        generated={"share": 0.5, "pans": pans},
        sampler={"learn_every": every},
        train={"batch_size": batch},
    )
    found = uneven_teaching(config, cut)
    assert found is None if said is None else said in found


def test_a_run_says_which_sources_teach(run_config, caplog):
    sections = {"generated": {"share": 0.5, "pans": 0.25}, "train": {"batch_size": 8}}
    for every, said in ((4, 1), (1, 0)):
        config = run_config(f"run{every}", sampler={"learn_every": every}, **sections)
        trainer = Trainer(config, CPU)
        trainer.loader().close()
        assert sum("teach the sampler" in r.getMessage() for r in caplog.records) == said
        caplog.clear()
