"""Training: learns, resumes bit by bit, survives kills and non-finite losses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_checks import assert_identical, weights
from run_processes import wait_for

from tats_fast.config import ConfigError, save_config
from tats_fast.engine.distributed import World, draw_seed
from tats_fast.engine.finite import NonFiniteLoss
from tats_fast.engine.logs import drop_lines_after
from tats_fast.engine.optim import lr_at, make_optimizer, parameter_groups, skip_step_if
from tats_fast.engine.runner import Update
from tats_fast.interchange import read_weights
from tats_fast.models.restore import load_models
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import list_checkpoints

CPU = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"ppo": {"credit": "set", "epochs": 1}},
        {"ppo": {"credit": "token_uniform", "reward": "error_motion", "epochs": 3}},
        {"masking": {"strategy": "adamae", "ratio": 0.75}},
        {"masking": {"strategy": "tube", "ratio": 0.75}},
        {"masking": {"strategy": "everest", "ratio": 0.75}},
        {"sampler": {"detach_tokens": False, "attention": "joint"}, "train": {"accumulation": 2}},
        {"train": {"precision": "bf16"}, "optim": {"grad_clip": 1.0}},
        {
            "masking": {"ratio": 0.9, "start_ratio": 0.5, "schedule": "cosine"},
            "sampler": {"temporal_value": "identity"},
        },
        {"masking": {"ratio": 0.75, "budget": "adaptive", "decoder_keep_ratio": 0.5}},
        {
            "masking": {"ratio": 0.75, "budget": "adaptive", "budget_by": "motion"},
            "ppo": {"credit": "set"},
            "sampler": {"warmup_frac": 0.5},
            "train": {"recompute": True},
        },
    ],
    ids=[
        *(
            "token",
            "set",
            "uniform+motion",
            "adamae",
            "tube",
            "everest",
            "attached",
            "bf16",
            "schedule",
        ),
        *("adaptive+keep", "adaptive+set"),
    ],
)
def test_every_kind_of_run_trains_and_logs(run_config, sections):
    config = run_config(**sections)
    Trainer(config, CPU).run()
    run_dir = Path(config.output_dir) / config.name
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(math.isfinite(row["loss_recon"]) for row in rows)
    learned = config.masking.strategy in ("tats", "adamae")
    assert ("entropy_frac" in rows[-1]) == learned
    expected = {"epoch", "lr", "clips_per_s", "data_wait_frac", "peak_mem_mb", "skipped_clips"}
    assert expected <= rows[-1].keys()
    if config.masking.strategy == "tats":
        names = {"loss_policy", "loss_value", "approx_kl", "clip_frac", "explained_variance"}
        assert names <= rows[-1].keys()
        assert (rows[-1]["approx_kl"] > 0) == (config.ppo.epochs > 1)
    assert (run_dir / "config.yaml").exists()
    assert list((run_dir / "tensorboard").iterdir())


def test_training_learns_to_rebuild_and_moves_the_sampler(run_config, tmp_path, demo_clips):
    listing = tmp_path / "one.txt"
    listing.write_text(f"{sorted(demo_clips.iterdir())[0]}\n")
    config = run_config(
        data={"train": str(listing), "scales": [1.0]},
        masking={"ratio": 0.5},
        optim={"base_lr": 0.2},
        train={"steps": 150, "log_every": 10},
    )
    trainer = Trainer(config, CPU)
    before = [p.clone() for p in trainer.learner.sampler.parameters()]
    trainer.run()
    after = list(trainer.learner.sampler.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss_recon"] for line in lines]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("workers, repeats", [(0, 1), (2, 1), (2, 2)])
def test_resume_is_bit_identical(run_config, tmp_path, workers, repeats):
    data = {"workers": workers, "flip": True, "repeats": repeats}
    Trainer(run_config("straight", data=data), CPU).run()
    config = run_config("resumed", data=data)
    first = Trainer(config, CPU)
    first.total_steps = 4  # as if the process had ended after step 4
    # The schedule must be that of the whole run, so only the loop's end is moved.
    plan = first._plan
    first._plan = lambda: plan_of(first, plan, 6)
    first.run()
    torch.manual_seed(999)  # whatever another process would start with
    second = Trainer(config, CPU)
    assert second.position.step == 4
    second.run()
    assert_identical(weights(tmp_path / "straight", 6), weights(tmp_path / "resumed", 6))


def test_repeats_change_neither_steps_nor_rates(run_config, tmp_path):
    """Clips count, not decoded windows: K crops of a window fill K places of the batch."""
    rows = {}
    for repeats in (1, 4):
        config = run_config(
            f"k{repeats}",
            data={"repeats": repeats, "workers": 1},
            train={"steps": None, "epochs": 2, "batch_size": 8, "log_every": 1},
        )
        trainer = Trainer(config, CPU)
        videos = len(trainer.videos)
        assert trainer.total_steps == math.ceil(2 * videos / 8)
        trainer.run()
        lines = (tmp_path / f"k{repeats}" / "metrics.jsonl").read_text().splitlines()
        rows[repeats] = [json.loads(line) for line in lines]
    for once, often in zip(rows[1], rows[4], strict=True):
        assert [once[n] for n in ("step", "epoch", "lr")] == [
            often[n] for n in ("step", "epoch", "lr")
        ]
        assert once["passes"] == once["epoch"]
        assert often["passes"] == pytest.approx(often["epoch"] / 4)


def plan_of(trainer, plan, total):
    end, trainer.total_steps = trainer.total_steps, total
    try:
        return plan()
    finally:
        trainer.total_steps = end


def start(config_path, *overrides):
    command = [sys.executable, "-m", "tats_fast.cli", "pretrain", "--config", str(config_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *overrides], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


@pytest.mark.slow
def test_sigkill_between_steps_then_resume_equals_an_uninterrupted_run(run_config, tmp_path):

    threads = torch.get_num_threads()
    config = run_config("killed", train={"steps": 40, "checkpoint_every": 4, "keep_checkpoints": 9})
    save_config(config, tmp_path / "killed.yaml")
    process = start(tmp_path / "killed.yaml")
    run_dir = tmp_path / "killed"
    wait_for(lambda: len(list_checkpoints(run_dir)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = list_checkpoints(run_dir)[-1]
    assert int(newest.name.split("_")[1]) < 40, "it was not killed in the middle"
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 39, "loss_re')  # a line cut off by the kill
    torch.set_num_threads(1)
    try:
        assert start(tmp_path / "killed.yaml").wait(120) == 0
        other = run_config("straight", train={"steps": 40, "keep_checkpoints": 9})
        save_config(other, tmp_path / "straight.yaml")
        assert start(tmp_path / "straight.yaml").wait(120) == 0
    finally:
        torch.set_num_threads(threads)
    assert_identical(weights(run_dir, 40), weights(tmp_path / "straight", 40))
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(2, 41, 2))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_save_and_exit(run_config, tmp_path, signum):

    train = {"steps": 100_000, "checkpoint_every": 100_000, "log_every": 1}
    config = run_config("stopped", train=train, data={"workers": 2})
    save_config(config, tmp_path / "stopped.yaml")
    process = start(tmp_path / "stopped.yaml")
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, output
    assert "Traceback" not in output
    (checkpoint,) = list_checkpoints(tmp_path / "stopped")
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert checkpoint.name == f"step_{step:06d}"
    load_models(checkpoint)


def test_half_written_checkpoints_are_never_seen(run_config, tmp_path):
    config = run_config()
    Trainer(config, CPU).run()
    run_dir = tmp_path / "run"
    assert [c.name for c in list_checkpoints(run_dir)] == [f"step_00000{n}" for n in (2, 4, 6)]
    (run_dir / "checkpoints" / ".writing_step_000008").mkdir()
    assert list_checkpoints(run_dir)[-1].name == "step_000006"
    assert Trainer(config, CPU).position.step == 6


def test_resume_none_refuses_to_overwrite(run_config):
    Trainer(run_config(), CPU).run()
    with pytest.raises(ConfigError, match=r"train\.resume=none: .* already holds checkpoints"):
        Trainer(run_config(train={"resume": "none"}), CPU)


def test_checkpoint_of_another_model_is_refused(run_config):
    Trainer(run_config(), CPU).run()
    with pytest.raises(ConfigError, match=r"model\.depth=1: the checkpoint .* has 2"):
        Trainer(run_config(model={"depth": 1}), CPU)


def test_damaged_and_hostile_checkpoints_are_refused(run_config, tmp_path):
    Trainer(run_config(), CPU).run()
    path = tmp_path / "run" / "checkpoints" / "step_000006" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_models(tmp_path / "run")

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"mae": Hostile()}, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_models(tmp_path / "run")
    with pytest.raises(ConfigError, match="refused: it holds something else than tensors"):
        read_weights(path.rename(path.with_suffix(".pth")))
    assert not (tmp_path / "owned").exists()


def test_non_finite_loss_skips_the_step_then_stops_the_run(run_config, tmp_path, monkeypatch):
    config = run_config(train={"steps": 20, "max_skipped": 3, "log_every": 1})
    trainer = Trainer(config, CPU)
    embed = trainer.learner.mae.encoder.embed
    forward, calls = embed.forward, []

    def poisoned(patches):
        calls.append(1)
        bad = len(calls) == 2 or len(calls) >= 6  # step 2, then every step from 6 on
        return forward(patches) * (math.nan if bad else 1.0)

    monkeypatch.setattr(embed, "forward", poisoned)
    with pytest.raises(NonFiniteLoss, match="3 steps in a row"):
        trainer.run()
    for parameter in trainer.learner.mae.parameters():
        assert torch.isfinite(parameter).all()
    assert torch.isfinite(torch.stack(list(trainer.learner.reward_scale))).all()
    run_dir = tmp_path / "run"
    notes = [json.loads(x) for x in (run_dir / "skipped_steps.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes] == [2, 6, 7, 8]
    assert len(notes[0]["clips"]) == 4
    assert list_checkpoints(run_dir)[-1].name == "step_000004"  # the last good one
    rows = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["loss_recon"] is None and rows[1]["skipped_steps"] == 1
    assert rows[2]["loss_recon"] is not None


def test_a_skipped_step_changes_nothing():
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    before = layer.weight.detach().clone()
    for flag, moved in ((1.0, False), (0.0, True)):
        layer(torch.ones(1, 3)).sum().backward()
        skip_step_if(optimizer, torch.tensor(flag))
        optimizer.step()
        assert torch.equal(layer.weight, before) != moved
    assert optimizer.state[layer.weight]["step"].item() == 1


def test_accumulation_equals_one_large_batch(run_config):
    """The autoencoder's gradient; random masking, so that both see the same visible count."""
    losses = []
    for accumulation in (1, 2):
        config = run_config(
            masking={"strategy": "random", "ratio": 0.75}, train={"accumulation": accumulation}
        )
        learner = make_learner(config, CPU)
        clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)
        clips = clips[:1].expand(4, -1, -1, -1, -1)
        torch.manual_seed(5)
        captured = {}
        step = learner.runner.step

        def keep(lr, skip, learner=learner, captured=captured, step=step):
            captured.update({n: p.grad.clone() for n, p in learner.mae.named_parameters()})
            return step(lr, skip)

        learner.runner.step = keep
        # All tokens' draws identical in both: one generator feeds the clips in order.
        pretrain_step(learner, list(clips.chunk(accumulation)), StepPlan(0, 1e-3, 16, False))
        losses.append(captured)
    for name, grad in losses[0].items():
        torch.testing.assert_close(losses[1][name], grad, rtol=1e-4, atol=1e-6)


def test_masks_depend_on_seed_step_and_rank():
    seeds = {draw_seed(s, t, r) for s in range(3) for t in range(3) for r in range(3)}
    assert len(seeds) == 27
    assert draw_seed(1, 2, 0) == draw_seed(1, 2, 0)


def test_warmup_rests_the_sampler(run_config):
    config = run_config(sampler={"warmup_frac": 0.5})
    trainer = Trainer(config, CPU)
    before = [p.clone() for p in trainer.learner.sampler.parameters()]
    for _ in range(3):
        plan = trainer._plan()
        assert plan.warmup
        clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)
        pretrain_step(trainer.learner, [clips], plan)
        trainer.position = type(trainer.position)(step=trainer.position.step + 1)
    assert not trainer._plan().warmup
    after = trainer.learner.sampler.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("detach", [True, False])
def test_detached_tokens_keep_the_policy_out_of_the_embedding(run_config, monkeypatch, detach):
    """With the reconstruction's own gradient removed, the embedding gets none - or some."""
    learner = make_learner(run_config(sampler={"detach_tokens": detach}), CPU)
    mae, backward = learner.mae, learner.runner.backward
    monkeypatch.setattr(
        "tats_fast.pretrain.step.kernels.masked_mse",
        lambda prediction, *_: prediction.square().mean(-1) * 0 + torch.rand(4, 48),
    )
    monkeypatch.setattr(learner.runner, "backward", lambda loss: backward(loss * 1e3))
    gradients = []

    def keep(_lr, skip):
        gradients.append(mae.encoder.embed.proj.weight.grad)
        return Update(skip, skip)

    monkeypatch.setattr(learner.runner, "step", keep)
    clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8)
    pretrain_step(learner, [clips], StepPlan(0, 1e-3, 16, False))
    assert (gradients[0].abs().max() == 0) == detach


def test_groups_and_schedule(run_config):
    config = run_config()
    learner = make_learner(config, CPU)
    decay, plain = parameter_groups(learner.sampler, 0.05)
    names = {id(p): n for n, p in learner.sampler.named_parameters()}
    assert {"positions", "block.norm1.weight", "actor.bias", "block.attention.qkv.q_bias"} <= {
        names[id(p)] for p in plain["params"]
    }
    assert all(p.ndim == 2 for p in decay["params"])
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    total = len(decay["params"]) + len(plain["params"])
    assert total == len(list(learner.sampler.parameters()))
    optim = config.optim
    rates = [lr_at(optim, step, 100, 512) for step in range(100)]
    assert rates[0] == pytest.approx(2 * optim.warmup_lr)
    assert max(rates) == pytest.approx(2 * optim.base_lr)
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(2 * optim.min_lr)
    assert make_optimizer(learner.sampler, optim).defaults["fused"]


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
