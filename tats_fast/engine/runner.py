"""A model and its optimizer under plain PyTorch, DDP or DeepSpeed, behind one interface."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tats_fast.config import ConfigError, TrainingConfig
from tats_fast.engine.deepspeed_json import read_deepspeed_json
from tats_fast.engine.distributed import World
from tats_fast.engine.exchange import ExchangeWait
from tats_fast.engine.extension_locks import announce_first_build, settle_locks
from tats_fast.engine.host_memory import keep_freed_memory
from tats_fast.engine.optim import load_optimizer, set_lr, skip_step_if
from tats_fast.engine.shared_buffers import unname_shared_buffers
from tats_fast.engine.zero3 import LIVE, gather_by_unit, in_low_precision, without_weights
from tats_fast.engine.zero_state import (
    share_out,
    split_weights,
    state_device,
    whole_state,
    whole_weights,
)


class Update(NamedTuple):
    """What became of an optimizer step, on the device: ``skip`` (0-d, fp32) is 1 where it was left
    out, for whatever reason; ``grad_norm`` (0-d) of all gradients before clipping."""

    skip: Tensor
    grad_norm: Tensor


class Runner(Protocol):
    """What a training step needs."""

    module: nn.Module
    """The bare model."""
    optimizer: torch.optim.Optimizer
    exchange: ExchangeWait | None
    """None where there is one process."""

    def forward(self, *inputs: Any) -> Any:
        """The model's forward."""

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        """Around one micro-batch's forward and backward; gradients are exchanged at the last."""

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch's mean loss; micro-batches are averaged."""

    def step(self, lr: float | Tensor, skip: Tensor) -> Update:
        """Update, unless ``skip`` (0-d, fp32, on the device) is 1; clears the gradients."""

    def weights(self, everywhere: bool = False) -> dict[str, Tensor]:
        """The module's ``state_dict``, whole on the first process or, with ``everywhere``, on each.
        All call it."""

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over whole weights, which every process has. All call it."""

    def parts(self) -> dict[str, Tensor]:
        """What this process keeps of each parameter, by name: all of it, or under ZeRO-3 a flat
        part, filled up to the size that the others' have. Values may be changed in place, but only
        ``weights`` reads them for certain."""

    def optimizer_state(self) -> dict[str, Any]:
        """The whole optimizer's state, as a plain AdamW's ``state_dict``: complete on the first
        process, whatever the engine and the number of processes. All call it."""

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take over what ``optimizer_state`` gave, on any engine and number of processes, once the
        module has its weights."""


class TorchRunner:
    """One process, or DDP."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        world: World,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self._clip = config.optim.grad_clip
        self._micro_batches = config.train.accumulation
        self._world = world
        self._wrapped = module
        if world.size > 1:
            self._wrapped = nn.parallel.DistributedDataParallel(
                module,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                # Ours are fixed tables; sent in every forward pass they would make all wait there.
                broadcast_buffers=False,
                # Keeps the buckets as they are. DDP would otherwise order them anew after a
                # process's first step, and with them the sums of three numbers or more, so that
                # a resumed run would differ in the last bits from one that was never stopped.
                find_unused_parameters=world.size > 2,
            )
        self.forward = self._wrapped.__call__
        self.exchange = ExchangeWait(module, world.device) if world.size > 1 else None

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        if last or self._world.size == 1:
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def backward(self, loss: Tensor) -> None:
        (loss / self._micro_batches).backward()
        if self.exchange is not None:
            self.exchange.end()

    def step(self, lr: float | Tensor, skip: Tensor) -> Update:
        return update(self.optimizer, self.module, lr, self._clip, skip)

    def weights(self, everywhere: bool = False) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)

    def parts(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.module.named_parameters()}

    def optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state)


class DeepSpeedRunner:
    """DeepSpeed ZeRO stage 1, 2 or 3."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        world: World,
        bf16: bool,
    ) -> None:
        try:
            import deepspeed
        except ImportError:
            raise ConfigError(
                "distributed.engine=deepspeed: DeepSpeed is not installed; "
                "pip install 'tats-fast[deepspeed]' or use distributed.engine=ddp"
            ) from None
        self.module = module
        self.optimizer = optimizer
        self._world = world
        self._splits_weights = config.distributed.splits_weights
        settle_locks()
        announce_first_build()
        if self._splits_weights:
            gather_by_unit(module)
        settings = self.settings(config, world, bf16)
        if self._splits_weights:
            settings["torch_autocast"]["lower_precision_safe_modules"] = in_low_precision(module)
        # DeepSpeed puts one flat partition per group in their place.
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        try:
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=settings
            )
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            path = config.distributed.deepspeed_config
            if path is None:
                raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ConfigError(
                f"distributed.deepspeed_config={path}: DeepSpeed refuses it ({reason})"
            ) from error
        unname_shared_buffers(world)
        self._keeps_views = self._splits_weights and not config.train.compiles(world.device.type)
        self.exchange = ExchangeWait(module, world.device) if world.size > 1 else None

    def forward(self, *inputs: Any) -> Any:
        with without_weights() if self._keeps_views else contextlib.nullcontext():
            return self._engine(*inputs)

    @staticmethod
    def settings(config: TrainingConfig, world: World, bf16: bool) -> dict[str, Any]:
        """DeepSpeed's JSON for this run: the user's file, then what the trainer owns."""
        distributed, train = config.distributed, config.train
        extra = read_deepspeed_json(distributed.deepspeed_config, distributed.zero_stage)
        zero = {**extra.pop("zero_optimization", {}), "stage": distributed.zero_stage}
        if distributed.splits_weights:
            # It would replace torch's own linear, for weights that autocast copies; ours are
            # gathered in bf16.
            zero["memory_efficient_linear"] = False
            # By default what is needed again within a billion weights stays, most of our models.
            zero.setdefault("stage3_max_reuse_distance", 0)
            zero.setdefault("stage3_max_live_parameters", LIVE)
        micro = train.batch_size // (world.size * train.accumulation)
        return {
            "steps_per_print": 10**9,  # the trainer prints
            **extra,
            "train_batch_size": train.batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": train.accumulation,
            "gradient_clipping": config.optim.grad_clip,
            # The fused torch AdamW is the optimizer in every engine, so that runs compare.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            # Autocast keeps fp32 parameters; the "bf16" block would cast the whole model.
            # By default it would exchange gradients of linear maps in bf16, as no other engine.
            "torch_autocast": {
                "enabled": bf16,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager:
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)  # divides by the accumulation itself
        if self.exchange is not None:
            self.exchange.end()

    def step(self, lr: float | Tensor, skip: Tensor) -> Update:
        set_lr(self.optimizer, lr)
        # A wait for the device where the host updates: torch's own copy would not wait.
        skip_step_if(self.optimizer, skip.to(state_device(self._engine.optimizer)))
        before = self._engine.skipped_steps
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if self._engine.skipped_steps > before:  # its own check found a gradient that is not finite
            skip, norm = torch.ones_like(skip), math.nan
        return Update(skip, torch.as_tensor(math.nan if norm is None else norm, device=skip.device))

    def weights(self, everywhere: bool = False) -> dict[str, Tensor]:
        if self._splits_weights:
            return whole_weights(self.module, self._world.device, everywhere)
        return self.module.state_dict()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        if self._splits_weights:
            split_weights(state, self.module, self._engine.optimizer)
        else:
            self.module.load_state_dict(state)

    def parts(self) -> dict[str, Tensor]:
        parameters = self.module.named_parameters()
        if self._splits_weights:
            return {name: p.ds_tensor.data for name, p in parameters}
        return {name: p.data for name, p in parameters}

    def optimizer_state(self) -> dict[str, Any]:
        return whole_state(self._engine.optimizer, self._groups)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        share_out(state, self._engine.optimizer, self._groups)


def make_runner(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    world: World,
    bf16: bool,
) -> Runner:
    """The runner that ``config.distributed`` asks for. On a CPU this process keeps the memory that
    steps free from now on (``keep_freed_memory``)."""
    if world.device.type == "cpu":
        keep_freed_memory()
    if config.distributed.engine == "deepspeed":
        return DeepSpeedRunner(module, optimizer, config, world, bf16)
    return TorchRunner(module, optimizer, config, world)


def update(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    lr: float | Tensor,
    clip: float,
    skip: Tensor,
) -> Update:
    """One AdamW update, unless ``skip`` is 1 or a gradient is not finite, which would poison every
    weight it reaches; clears the gradients.

    Args:
        lr: as ``set_lr`` takes it.
        clip: largest gradient norm; 0 = no limit.
    """
    norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    skip = torch.maximum(skip, (~torch.isfinite(norm)).to(skip.dtype))
    if clip > 0:
        nn.utils.clip_grads_with_norm_(module.parameters(), clip, norm)
    set_lr(optimizer, lr)
    skip_step_if(optimizer, skip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(skip, norm)
