"""The whole pretraining step as one CUDA graph, for steps that wait for the host's launches.

A graph replays launches with the addresses they had when it was recorded. So whatever changes from
step to step goes through memory that stays (``StaticStep``): clips, learning rate and reward's
scale; the draws' seed is an input that PyTorch gives a graph. Weights and optimizer state are
updated in place anyway, and gradients come and go inside the graph's own memory.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tats_fast.config import RunConfig
from tats_fast.config.checks import require
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import capturable, set_lr
from tats_fast.pretrain.flops import training_step
from tats_fast.pretrain.learner import Learner
from tats_fast.pretrain.step import StepPlan, pretrain_step, seed_draws, seeded_step
from tats_fast.rl import RewardScale

LOGGER = logging.getLogger("tats_fast")

LAUNCH_BOUND_FLOP = 7e12
"""Of a micro-batch: about what an H100 computes in the 17 to 50 ms in which its host launches the
1,558 kernels of an eager ViT-B step; 16 clips of ViT-B at K = 2 and 90% masked. At 4.4e12 (16
clips, K = 1, 95% masked) a graph is 2.1 times as fast there."""
EAGER_STEPS = 3
"""Before a recording: they compile kernels, take workspaces and create the optimizers' state."""

Step = Callable[[list[Tensor], StepPlan], dict[str, Tensor]]


def make_step(learner: Learner) -> Step:
    """``pretrain_step`` of this learner, as ``train.cuda_graph`` wants it.

    Raises:
        ConfigError: a graph is asked for where there can be none.
    """
    if wants_graph(learner.config, learner.world):
        return GraphedStep(learner)
    return partial(pretrain_step, learner)


def wants_graph(config: RunConfig, world: World) -> bool:
    """What ``train.cuda_graph`` means here.

    Raises:
        ConfigError: a graph is asked for where there can be none.
    """
    problem, wanted = _problem(config, world), config.train.cuda_graph
    if wanted:
        require(problem is None, "train.cuda_graph", True, f"{problem}, or leave it out")
        return True
    clips = config.train.batch_size // config.train.accumulation
    launch_bound = clips * training_step(config) <= LAUNCH_BOUND_FLOP
    return wanted is None and problem is None and launch_bound


def _problem(config: RunConfig, world: World) -> str | None:
    """Why a step cannot be a graph, and what to do; None where it can."""
    if world.device.type != "cuda":
        return "needs a CUDA GPU; run with device=cuda on a machine that has one"
    if world.size > 1 or config.distributed.engine == "deepspeed":
        return "is for one process without DeepSpeed; start one"
    if config.masking.schedule != "constant":
        return "needs a constant number of visible tokens; set masking.schedule=constant"
    return None


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


class StaticStep:
    """Steps of one kind (``StepPlan.warmup``, ``StepPlan.visible``, the clips' shapes) whose inputs
    and outputs lie where they lay."""

    def __init__(self, learner: Learner, clips: list[Tensor], plan: StepPlan) -> None:
        self.learner = learner
        self.clips = [torch.empty_like(clip) for clip in clips]
        self.lr = torch.zeros((), dtype=torch.float64, device=learner.world.device)
        self.scale = RewardScale(*(part.clone() for part in learner.reward_scale))
        self.plan = replace(plan, lr=self.lr)
        self.names: list[str] = []
        self.values: Tensor | None = None

    def fill(self, clips: list[Tensor], plan: StepPlan) -> None:
        """The next step's inputs."""
        for place, clip in zip(self.clips, clips, strict=True):
            place.copy_(clip)
        self.lr.fill_(plan.lr)
        self._keep_scale()
        seed_draws(self.learner, plan.step)

    def run(self) -> None:
        """The step, with ``names`` and ``values`` (0-d each, stacked) of its metrics."""
        metrics = seeded_step(self.learner, self.clips, self.plan)
        self._keep_scale()
        self.names = sorted(metrics)
        self.values = torch.stack([metrics[name] for name in self.names])

    def metrics(self) -> dict[str, Tensor]:
        """Those of the step just taken, which the next leaves alone."""
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))

    def _keep_scale(self) -> None:
        """Take over a scale that a step or a checkpoint has put in the place of ours."""
        if self.learner.reward_scale is not self.scale:
            for place, value in zip(self.scale, self.learner.reward_scale, strict=True):
                place.copy_(value)
            self.learner.reward_scale = self.scale


class GraphedStep:
    """``pretrain_step`` of one learner: the first ``EAGER_STEPS`` of every kind run as they are, on
    a stream of their own, and those after them as one launch.

    The same draws, updates and metrics, and state dicts of the same form. Optimizer state must stay
    where it is: load a checkpoint before the first call, or make another ``GraphedStep``. Where
    recording fails, one warning says why and steps go on without (``failure``).
    """

    def __init__(self, learner: Learner, capture: bool = True) -> None:
        """capture: False = only ever run the static step, as tests on a CPU do."""
        self.learner = learner
        self.failure: str | None = None
        self.pool_bytes = 0
        """Device memory that the graph keeps to itself."""
        self._capture = capture
        self._kind: tuple | None = None
        self._static: StaticStep | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0
        self._stream: torch.cuda.Stream | None = None

    @property
    def recorded(self) -> bool:
        """Whether the next step of the last one's kind is a replay."""
        return self._graph is not None

    def __call__(self, clips: list[Tensor], plan: StepPlan) -> dict[str, Tensor]:
        """``pretrain_step(learner, clips, plan)``."""
        if self.failure is not None:
            return pretrain_step(self.learner, clips, plan)
        self._start(clips, plan)
        self._static.fill(clips, plan)
        if self._capture and self._graph is None and self._taken == EAGER_STEPS:
            self._record()
            if self.failure is not None:
                return pretrain_step(self.learner, clips, plan)
        if self._graph is not None:
            self._graph.replay()
        elif self._capture:
            self._run_aside()
        else:
            self._static.run()
        self._taken += 1
        self._note_rates(plan)
        return self._static.metrics()

    def _start(self, clips: list[Tensor], plan: StepPlan) -> None:
        """Make room for steps of this kind, unless the last was one. Kinds change for good (from
        warm-up to sampler), so that the last kind's graph is freed."""
        kind = (plan.warmup, plan.visible, *((clip.shape, clip.dtype) for clip in clips))
        if kind != self._kind:
            self._kind, self._graph, self._taken = kind, None, 0
            self._static = StaticStep(self.learner, clips, plan)

    def _run_aside(self) -> None:
        """On the stream that will be recorded: there cuBLAS has its workspace by then, and there
        autograd adds up the parameters' gradients."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.learner.world.device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._static.run()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _record(self) -> None:
        """Record the step without taking it; sets ``failure`` where that cannot be done."""
        gc.collect()  # what autograd graphs in a cycle still hold belongs to no stream of ours
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        reason = ""
        try:
            graph.register_generator_state(self.learner.generator)
            with (
                torch.cuda.stream(
                    self._stream
                ),  # a recording that fails does not go back by itself
                capturable(*self._optimizers()),
                # Other threads (decoders) may do meanwhile what a recording one may not.
                torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    self._static.run()
                except Exception as error:
                    reason = _in_a_line(error)  # the graph will only say that it is broken
                    raise
        except Exception as error:
            self._undo(pool)
            self.failure = reason or _in_a_line(error)
            LOGGER.warning(
                "the step cannot be recorded as a CUDA graph and goes on without "
                "(train.cuda_graph): %s",
                self.failure,
            )
            return
        self._graph = graph
        self.pool_bytes = torch.cuda.memory_reserved() - before
        LOGGER.info(
            "steps are one CUDA graph from here, with %.0f MiB of its own (train.cuda_graph)",
            self.pool_bytes / 2**20,
        )

    def _undo(self, pool: tuple[int, int]) -> None:
        """Put back what a recording broken off may have left: no kernel of it has run."""
        device = self.learner.world.device
        self.learner.reward_scale = self._static.scale
        for optimizer in self._optimizers():
            optimizer.zero_grad(set_to_none=True)
        index = torch.cuda.current_device() if device.index is None else device.index
        # They still believe to be recorded, and would refuse to draw.
        for generator in (self.learner.generator, torch.cuda.default_generators[index]):
            generator.graphsafe_set_state(generator.clone_state())
        with contextlib.suppress(AttributeError, RuntimeError):  # an ended one has nothing to end
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)

    def _note_rates(self, plan: StepPlan) -> None:
        """Leave numbers in the optimizers' state dicts, as ``pretrain_step`` does."""
        set_lr(self.learner.runner.optimizer, plan.lr)
        if self.learner.sampler_optimizer is not None and not plan.warmup:
            set_lr(self.learner.sampler_optimizer, plan.lr * self.learner.config.ppo.lr_scale)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        both = (self.learner.runner.optimizer, self.learner.sampler_optimizer)
        return [optimizer for optimizer in both if optimizer is not None]
