"""The ops that ``ops.py`` measures: their inputs at each shape, and how each implementation runs.

A problem holds its inputs as leaves; ``runner`` gives the call of one implementation on them. The
composites ``sampler_attention`` (the trajectory attention module) and ``sampler_block`` (norms,
that module and the MLP, as in the sampler) run as in training: fp32 parameters under autocast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from tats_fast import kernels
from tats_fast.kernels import dispatch
from tats_fast.kernels.example_inputs import MAKERS, RATIO_OPS, SHARED, Shape, normal
from tats_fast.models.layers import Block, TrajectoryAttention, initialize

IMPLEMENTATIONS = ("reference", "torch", "compiled", "triton", "triton_compiled")
"""``compiled`` is torch.compile of the best composition (level torch, else reference);
``triton_compiled`` exists for composites: Triton ops, torch.compile around them, as the step's
``fast`` path on a GPU."""
COMPOSITES = ("sampler_attention", "sampler_block")
OPS = (*MAKERS, *COMPOSITES)

CASES = {
    "vit_b_r95": Shape(visible=78),
    "vit_b_r85": Shape(visible=235),
    "vit_s_r95": Shape(visible=78, heads=6, decoder_width=192),
    "small": Shape(frames=8, places=36, heads=4, dim=32, decoder_width=96, visible=43),
    "tiny": Shape(frames=2, places=9, heads=2, dim=16, decoder_width=24, patch_dim=48, visible=5),
}
"""ViT-B and ViT-S at 16 x 224 x 224 and ratio .95 or .85, the demo's model on 96-pixel clips, and
one for tests. The ratio matters to ``RATIO_OPS`` only."""
DEFAULT_CASES = ("vit_b_r95", "vit_b_r85", "vit_s_r95", "small")


def cases_of(op: str, chosen: tuple[str, ...]) -> list[str]:
    """Cases that are worth a row of their own for ``op``."""
    if op in RATIO_OPS:
        return [case for case in chosen if case != "vit_s_r95"]
    return [case for case in chosen if case != "vit_b_r85"]


def why_not(op: str, implementation: str, device_type: str) -> str | None:
    """Why ``op`` is not measured in this implementation here; None when it is."""
    if implementation.startswith("triton"):
        if device_type != "cuda":
            return "Triton kernels run on CUDA; their interpreter is no implementation"
        problem = dispatch.triton_problem(device_type)
        if problem is not None:
            return problem
    composite = op in COMPOSITES
    if implementation == "triton_compiled":
        return None if composite else "for composites only"
    if implementation in ("torch", "triton") and not composite:
        with kernels.use(implementation):
            if kernels.resolved_level(op, device_type) != implementation:
                return f"has no level {implementation} of its own"
    return None


class Problem:
    """One op at one shape: its leaves, and calls of its implementations.

    Args:
        shape: batch and dtype included.
    """

    def __init__(self, op: str, shape: Shape, device: torch.device, seed: int) -> None:
        self.op, self.shape, self.device = op, shape, device
        torch.manual_seed(seed)
        with device:  # drawn there: a billion normals take a CPU core half a minute
            self.module = _module(op, shape) if op in COMPOSITES else None
            if self.module is None:
                arguments = MAKERS[op](shape)
            else:
                arguments = {"x": normal(shape.batch, shape.tokens, shape.width, dtype=shape.dtype)}
        self.inputs = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        self._constants = {name: x for name, x in arguments.items() if name not in self.inputs}

    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken for, by name."""
        inputs = {name: x for name, x in self.inputs.items() if x.requires_grad}
        return inputs | (dict(self.module.named_parameters()) if self.module else {})

    def last_clips(self, count: int) -> Problem:
        """The same problem, of the last ``count`` clips."""
        other = copy.copy(self)
        other.shape = replace(self.shape, batch=count)
        other.module = copy.deepcopy(self.module)
        other.inputs = {name: self._cut(name, x, count) for name, x in self.inputs.items()}
        return other

    def _cut(self, name: str, x: Tensor, count: int) -> Tensor:
        part = x.detach()[-count:] if self.per_clip(name) else x.detach()
        return part.clone().requires_grad_(x.requires_grad)

    def per_clip(self, name: str) -> bool:
        """Whether the leaf's or input's first dimension counts clips."""
        return name in self.inputs and name not in SHARED

    def double(self) -> Problem:
        """The same problem on the same rounded numbers, in fp64."""
        other = copy.copy(self)
        other.shape = replace(self.shape, dtype=torch.float64)
        other.module = None if self.module is None else copy.deepcopy(self.module).double()
        other.inputs = {
            name: x.detach().double().requires_grad_(x.requires_grad)
            if x.is_floating_point() and name != "uniform"
            else x
            for name, x in self.inputs.items()
        }
        return other

    def runner(self, implementation: str) -> Callable[[], tuple[Tensor, ...]]:
        """The forward of ``implementation``, graph included."""
        compiled = implementation.endswith("compiled")
        level = {"compiled": "torch", "triton_compiled": "triton"}.get(
            implementation, implementation
        )
        if self.module is None:
            with kernels.use(level):
                function = kernels.resolve(self.op, self.device.type)
        else:
            function = self.module
        if compiled:
            # Several problems share a function: past the default limit dynamo would run it eagerly.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            # The backward pass alone is timed on a graph that is kept.
            torch._functorch.config.donated_buffer = False
            function = torch.compile(function, dynamic=False)
        narrow = self.module is not None and self.shape.dtype in (torch.bfloat16, torch.float16)

        def run() -> tuple[Tensor, ...]:
            with ExitStack() as stack:
                stack.enter_context(kernels.use(level))
                if narrow:
                    stack.enter_context(torch.autocast(self.device.type, self.shape.dtype))
                out = function(*self.inputs.values(), *self._constants.values())
            return out if isinstance(out, tuple) else (out,)

        return run


def _module(op: str, shape: Shape) -> nn.Module:
    width = shape.width
    module: nn.Module = TrajectoryAttention(width, shape.heads, shape.frames, "projected")
    if op == "sampler_block":
        module = Block(width, 4.0, module)
    initialize(module)
    return module
