"""A run that resumes says what is otherwise than in its checkpoint, and does what it says."""

from __future__ import annotations

import pytest
import torch

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video
from tats_fast.engine.changes import changed_videos
from tats_fast.engine.distributed import World
from tats_fast.engine.videos import listing
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def trained(run_config):
    Trainer(run_config(), CPU).run()


def resumed(capsys, config):
    """What a trainer of ``config`` says at its start about changes, and itself."""
    trainer = Trainer(config, CPU)
    trainer.run()
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("changed since")]
    return trainer, lines


def test_an_unchanged_run_says_nothing(trained, run_config, capsys):
    config = run_config(train={"resume": "auto", "steps": 6})
    trainer = Trainer(config, CPU)
    assert trainer._changed == []


def test_changes_are_said_in_one_line_and_applied(trained, run_config, capsys):
    optim = {"base_lr": 0.05, "weight_decay": 0.5, "betas": [0.5, 0.6]}
    config = run_config(optim=optim, seed=3, train={"steps": 8, "batch_size": 2})
    trainer, (line,) = resumed(capsys, config)
    assert line.startswith("changed since step_000006: ")
    changes = line.partition(": ")[2].split("; ")
    assert sorted(changes) == [
        "optim.betas: [0.9, 0.95] -> [0.5, 0.6]",
        "optim.weight_decay: 0.05 -> 0.5",
        "seed: 0 -> 3",
        "train.batch_size: 4 -> 2",
        "train.steps: 6 -> 8",
    ]
    learner = trainer.learner
    for optimizer in (learner.runner.optimizer, learner.sampler_optimizer):
        groups = optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
        assert all(tuple(group["betas"]) == (0.5, 0.6) for group in groups)
        (count,) = {state["step"].item() for state in optimizer.state.values()}
        assert count == 8 * (1 if optimizer is learner.runner.optimizer else config.ppo.epochs)


def test_another_list_is_said(trained, run_config, capsys, tmp_path, demo_clips):
    videos = sorted(demo_clips.iterdir())
    listing = tmp_path / "half.txt"
    listing.write_text("".join(f"{path}\n" for path in videos[: len(videos) // 2]))
    config = run_config(data={"train": str(listing)}, train={"steps": 8})
    _, (line,) = resumed(capsys, config)
    assert f"videos: {len(videos)} -> {len(videos) // 2}" in line


def test_other_labels_are_said():
    before, now = (listing([Video("a.mp4", label), Video("b.mp4", "run")]) for label in (2, 10))
    assert changed_videos(before, now) == ["labels: not those of before"]
    assert changed_videos(before, listing([Video("a.mp4")])) == ["videos: 2 -> 1"]
    assert changed_videos(before, listing([Video("a.mp4"), Video("c.mp4")])) == [
        "videos: 2 -> as many others"
    ]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"repeats": 2}}, r"data\.repeats=2: the checkpoint .* has 1, and "),
        ({"train": {"init_from": "x"}}, r"train\.init_from=x: the checkpoint .* has None, and "),
        (
            {"train": {"batch_size": 2, "steps": None, "epochs": 3}},
            r"train\.batch_size=2: .* has 4, and .*train\.steps",
        ),
        (
            {"generated": {"share": 0.5}, "train": {"steps": None, "epochs": 3}},
            r"generated\.share=0\.5: .* has 0\.0, and .*train\.steps",
        ),
        (
            {"masking": {"strategy": "random"}},
            r"masking\.strategy=random: .* has tats; set masking\.strategy=tats to go on, or "
            r"choose another name=\.\.\. to start anew$",
        ),
        (
            {"ppo": {"reward": "error"}},
            r"has sparse_change; set ppo\.reward=sparse_change to go on, ",
        ),
        (
            {"sampler": {"heads": 1}},
            r"sampler\.heads=1: .* has None; set sampler\.heads=null to go on",
        ),
    ],
)
def test_what_cannot_be_changed_is_refused(trained, run_config, sections, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Trainer(run_config(**sections), CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("strategy", ["random", "tube", "everest", "adamae"])
def test_what_a_strategy_does_not_read_may_be_otherwise(run_config, capsys, strategy):
    """Such as a reward whose default was another when the run began."""

    def config(reward, steps):
        masking = {"strategy": strategy, "ratio": 0.75}
        return run_config(masking=masking, ppo={"reward": reward}, train={"steps": steps})

    Trainer(config("error", 2), CPU).run()
    _, (line,) = resumed(capsys, config(None, 3))
    assert "ppo.reward: error -> sparse_change" in line


def test_a_sampler_that_nobody_has_may_be_otherwise(run_config):
    masking = {"strategy": "random", "ratio": 0.75}
    Trainer(run_config(masking=masking), CPU).run()
    joint = {"attention": "joint"}
    Trainer(run_config(masking=masking, sampler=joint, train={"steps": 7}), CPU).run()
    with pytest.raises(ConfigError, match=r"masking\.strategy=adamae: .* has random; "):
        Trainer(run_config(masking={"strategy": "adamae", "ratio": 0.75}), CPU)
