"""The step as a CUDA graph: the same steps, on memory that stays where it is."""

from __future__ import annotations

import copy
import logging
from functools import partial

import pytest
import torch
from run_checks import RefuseToWait, assert_identical, weights

from tats_fast.config import ConfigError
from tats_fast.config.reading import build_config
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import make_optimizer, set_lr
from tats_fast.pretrain import step as step_module
from tats_fast.pretrain.graph import EAGER_STEPS, GraphedStep, make_step, wants_graph
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step
from tats_fast.pretrain.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))
CUDA = World(0, 1, torch.device("cuda", 0))  # only ever a name on a machine without one
WARMUP, STEPS = EAGER_STEPS + 2, 2 * EAGER_STEPS + 4
HAS_GPU = torch.cuda.is_available()


def gpu(test):
    """A test for a machine with a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU")(test))


WAYS = {
    "K=1": {"ppo": {"epochs": 1}, "train": {"ema_decay": 0.75}},
    "K=2": {"ppo": {"epochs": 2, "lr_scale": 0.5}, "optim": {"grad_clip": 1.0}},
    "set": {"ppo": {"epochs": 2, "credit": "set", "reward": "error_motion"}},
    "adamae": {"masking": {"strategy": "adamae"}},
    "random": {"masking": {"strategy": "random"}},
    "frame": {"masking": {"strategy": "frame"}},
    "everest": {"masking": {"strategy": "everest"}},
    "adaptive": {"masking": {"budget": "adaptive", "decoder_keep_ratio": 0.5}},
    "draws": {"masking": {"draws_per_clip": 2, "decoder_keep_ratio": 0.5}},
    "every": {"sampler": {"learn_every": 2}, "ppo": {"epochs": 2}},
    "accumulation": {"train": {"accumulation": 2, "recompute": True}},
}


def learner_for(tiny_config, world, way, attention="eager", **train):
    sections = dict(WAYS[way])
    sections["masking"] = {"ratio": 0.75, **sections.get("masking", {})}
    small = {"batch_size": 4, "steps": STEPS, "compile": False}
    train = {**small, **sections.get("train", {}), **train}
    # The plain attention: FlashAttention's and cuDNN's backward add up in an order of their own.
    model = {"attention": attention}
    return make_learner(tiny_config(**{**sections, "model": model, "train": train}), world)


def steps(world, accumulation, first=0, last=STEPS, rate=2**-9):
    """Clips and plans of a run whose sampler rests for WARMUP steps."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8, generator=generator)
        # Rates that fp32 holds exactly: on a CPU the fused kernel takes wider ones as they are.
        plan = StepPlan(step, rate * (step + 1), 16, warmup=step < WARMUP)
        yield list(clips.to(world.device).chunk(accumulation)), plan


def state_of(learner):
    """All that a step may change, as a checkpoint holds it."""
    optimizer = learner.runner.optimizer.state_dict()
    return {**learner.model_state(), **learner.trainer_state(), "optimizer": optimizer}


def load(learner, state):
    """What ``state_of`` gave, as from a file."""
    state = copy.deepcopy(state)
    learner.load_state(state, state)
    learner.runner.optimizer.load_state_dict(state["optimizer"])


def taken(learner, step, **kwargs):
    """Metrics of every step; they must still be right when the last one is done."""
    accumulation = learner.config.train.accumulation
    return [step(clips, plan) for clips, plan in steps(learner.world, accumulation, **kwargs)]


@pytest.mark.parametrize("way", WAYS)
def test_static_step_is_the_step(tiny_config, way):
    plain = learner_for(tiny_config, CPU, way)
    expected = taken(plain, partial(pretrain_step, plain))
    learner = learner_for(tiny_config, CPU, way)
    found = taken(learner, GraphedStep(learner, capture=False))
    assert_identical(found, expected)
    assert_identical(state_of(learner), state_of(plain))


def test_static_step_neither_waits_nor_moves(tiny_config):
    """What a recording must hold to: no wait for the device, the same memory at every step."""
    learner = learner_for(tiny_config, CPU, "K=2")
    graphed = GraphedStep(learner, capture=False)
    places = []
    for clips, plan in steps(CPU, 1):
        metrics = graphed(clips, plan)
        static = graphed._static
        kept = metrics["loss_recon"].untyped_storage().data_ptr()
        assert kept != static.values.untyped_storage().data_ptr()  # the next replay writes there
        static.fill(clips, plan)
        with RefuseToWait():
            static.run()
        kept = (*static.clips, static.lr, *learner.reward_scale, *learner.mae.parameters())
        places.append([tensor.data_ptr() for tensor in kept])
        parameters = [*learner.mae.parameters(), *learner.sampler.parameters()]
        assert all(parameter.grad is None for parameter in parameters)
    assert len(set(map(tuple, places[:WARMUP]))) == len(set(map(tuple, places[WARMUP:]))) == 1


def test_a_new_kind_of_step_starts_over(tiny_config):
    learner = learner_for(tiny_config, CPU, "K=1")
    graphed = GraphedStep(learner, capture=False)
    statics = []
    for clips, plan in steps(CPU, 1):
        graphed(clips, plan)
        statics.append(graphed._static)
    assert len(set(map(id, statics[:WARMUP]))) == len(set(map(id, statics[WARMUP:]))) == 1
    assert statics[0] is not statics[-1]
    graphed([clips[0][:2]], plan)
    assert graphed._static.clips[0].shape[0] == 2


def test_a_scale_from_a_checkpoint_is_taken_over(tiny_config):
    plain = learner_for(tiny_config, CPU, "K=2")
    taken(plain, partial(pretrain_step, plain), first=WARMUP + 2)
    learner = learner_for(tiny_config, CPU, "K=2")
    graphed = GraphedStep(learner, capture=False)
    taken(learner, graphed, first=STEPS - 1)
    load(learner, state_of(plain))
    static = graphed._static
    static.fill(*next(steps(CPU, 1, first=STEPS - 1)))
    assert learner.reward_scale is static.scale  # where a recorded step would look for it
    assert_identical(static.scale, plain.reward_scale)
    taken(learner, graphed, first=STEPS - 1)
    taken(plain, partial(pretrain_step, plain), first=STEPS - 1)
    assert_identical(state_of(learner), state_of(plain))


def test_a_rate_on_the_device_rounds_once(tiny_config):
    config = tiny_config().optim
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config)
    optimizer.param_groups[0]["lr_scale"] = 0.7
    set_lr(optimizer, torch.tensor(0.1, dtype=torch.float64))
    scaled, plain = (group["lr"] for group in optimizer.param_groups)
    assert torch.equal(scaled, torch.tensor(0.1 * 0.7)) and torch.equal(plain, torch.tensor(0.1))
    assert scaled.dtype == torch.float32  # the fused kernel reads nothing else


@pytest.mark.parametrize(
    ("world", "sections", "message"),
    [
        (CPU, {}, "needs a CUDA GPU"),
        (World(0, 2, torch.device("cuda", 0)), {}, "one process without DeepSpeed"),
        (CUDA, {"distributed": {"engine": "deepspeed"}}, "one process without DeepSpeed"),
        (
            CUDA,
            {"masking": {"schedule": "linear", "start_ratio": 0.5}},
            "masking.schedule=constant",
        ),
    ],
)
def test_where_there_can_be_none(tiny_config, world, sections, message):
    sections = {**sections, "masking": {"ratio": 0.75, **sections.get("masking", {})}}
    asked = tiny_config(train={"cuda_graph": True, "batch_size": 4}, **sections)
    with pytest.raises(ConfigError, match=f"^train.cuda_graph=True: .*{message}.*leave it out$"):
        wants_graph(asked, world)
    assert not wants_graph(tiny_config(train={"batch_size": 4}, **sections), world)


def test_small_steps_are_graphs_by_default():
    def wants(**train):
        return wants_graph(build_config({"train": train}), CUDA)  # ViT-B, K = 2, 90% masked

    assert wants(batch_size=16) and not wants(batch_size=32)
    assert wants(batch_size=64, accumulation=4)  # each micro-batch is launched anew
    assert wants(batch_size=64, cuda_graph=True) and not wants(batch_size=16, cuda_graph=False)


def test_without_a_graph_it_is_the_plain_step(tiny_config):
    learner = learner_for(tiny_config, CPU, "random")
    step = make_step(learner)
    assert not isinstance(step, GraphedStep)
    clips, plan = next(steps(CPU, 1))
    again = learner_for(tiny_config, CPU, "random")
    assert_identical(step(clips, plan), pretrain_step(again, clips, plan))


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_replayed_step_is_the_step(tiny_config, way, precision):
    """The same kernels in the same order: the same bits."""
    assert_replayed_alike(tiny_config, way, precision=precision)


@gpu
@pytest.mark.slow
def test_compiled_and_replayed_step_is_the_compiled_step(tiny_config):
    assert_replayed_alike(tiny_config, "K=2", precision="bf16", compile=True)


def assert_replayed_alike(tiny_config, way, **settings):
    plain, learner = (learner_for(tiny_config, CUDA, way, **settings) for _ in range(2))
    expected = taken(plain, partial(pretrain_step, plain))
    graphed = GraphedStep(learner)
    found = taken(learner, graphed)
    assert graphed.failure is None and graphed.recorded
    assert_identical(found, expected)
    assert_identical(state_of(learner), state_of(plain))


@gpu
def test_default_attention_can_be_recorded(tiny_config):
    learner = learner_for(tiny_config, CUDA, "K=2", precision="bf16", attention="auto")
    plain = learner_for(tiny_config, CUDA, "K=2", precision="bf16", attention="auto")
    graphed = GraphedStep(learner)
    # Its backward may add up in another order each time, in 16 bit: steps so small that the
    # difference has no time to grow.
    found = taken(learner, graphed, rate=1e-6)
    expected = taken(plain, partial(pretrain_step, plain), rate=1e-6)
    assert graphed.failure is None and graphed.recorded
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one["loss_recon"], two["loss_recon"], rtol=2e-3, atol=0)


@gpu
def test_resumed_run_goes_on_alike(tiny_config):
    """From a graphed run, with and without a graph; and a skipped step is skipped in both."""
    first = learner_for(tiny_config, CUDA, "K=2")
    taken(first, GraphedStep(first), last=WARMUP + 2)
    state = state_of(first)
    ends = []
    for way in (GraphedStep, lambda learner: partial(pretrain_step, learner)):
        learner = learner_for(tiny_config, CUDA, "K=2")
        load(learner, state)
        metrics = taken(learner, way(learner), first=WARMUP + 2, last=STEPS + 3)
        ends.append((metrics, state_of(learner)))
    assert_identical(ends[0], ends[1])


@gpu
@pytest.mark.parametrize("kind", ["waits", "raises"])
def test_a_recording_that_fails_costs_nothing(tiny_config, monkeypatch, caplog, kind):
    """One warning, and the steps go on as if there had been no attempt."""
    plain = learner_for(tiny_config, CUDA, "K=2")
    expected = taken(plain, partial(pretrain_step, plain))
    spread = step_module.explained_variance  # after weights, scale and gradients were touched

    def breaks(value, reward):
        if torch.cuda.is_current_stream_capturing():
            if kind == "waits":
                reward.sum().item()
            raise ValueError("cannot be recorded")
        return spread(value, reward)

    monkeypatch.setattr(step_module, "explained_variance", breaks)
    learner = learner_for(tiny_config, CUDA, "K=2")
    graphed = GraphedStep(learner)
    with caplog.at_level(logging.WARNING, "tats_fast"):
        found = taken(learner, graphed)
    assert graphed.failure is not None and not graphed.recorded
    assert ("cannot be recorded" in graphed.failure) == (kind == "raises")
    assert caplog.text.count("cannot be recorded as a CUDA graph") == 1
    assert_identical(found, expected)
    assert_identical(state_of(learner), state_of(plain))
    torch.rand(3, device="cuda")  # PyTorch's own generator draws again, too


@gpu
def test_trainer_takes_graphed_steps(run_config, tmp_path):
    pytest.importorskip("av")
    for name, graph in (("graphed", True), ("plain", False)):
        train = {"cuda_graph": graph, "steps": STEPS, "checkpoint_every": STEPS, "compile": False}
        model, sampler = {"attention": "eager"}, {"warmup_frac": WARMUP / STEPS}
        config = run_config(name, train=train, model=model, sampler=sampler)
        trainer = Trainer(config, CUDA)
        trainer.run()
        assert isinstance(trainer.step, GraphedStep) == graph
        if graph:
            assert trainer.step.failure is None and trainer.step.recorded
    one, two = (weights(tmp_path / name, STEPS) for name in ("graphed", "plain"))
    assert_identical(one["model"], two["model"])
    assert_identical(one["optimizer"], two["optimizer"])
    assert_identical(one["trainer"]["sampler_optimizer"], two["trainer"]["sampler_optimizer"])
