"""Whether an implementation computes the op: asked before it is timed.

Judged as the kernels' tests do: against the reference in fp64 on the same rounded inputs, an
implementation may err at most twice as much as the reference does in the compute dtype (a whole
module three times: more roundings in a row), plus ``SLACK`` of the largest entry. The full batch
runs; the last ``GATE_CLIPS`` clips are compared, and only they send gradients back, so that an fp64
copy of a few clips is enough to check the parameters' gradients too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parts.ops.cases import Problem

GATE_CLIPS = 2
SLACK = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""By the result's dtype; in a module, whose parameters are fp32, by the compute dtype. In 16 bits
four roundings; in fp32 what sums over thousands of rows may differ by when they are taken in
another order, which is far below TF32's rounding (5e-4)."""


class WrongResult(Exception):
    """An implementation that computes something else."""


class Gate:
    """Truth and tolerance of one problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._clips = min(GATE_CLIPS, problem.shape.batch)
        small = problem.last_clips(self._clips)
        wide = small.double()
        self._cotangents: list[Tensor] = []
        self._keys = _sorting_keys(wide) if problem.op == "policy_sample" else None
        self._truth = self._results(wide, wide.runner("reference"))
        own = self._results(small, small.runner("reference"))
        self._own = {name: _error(own[name], exact) for name, exact in self._truth.items()}

    def check(self, runner: Callable[[], tuple[Tensor, ...]], judge: bool = True) -> float:
        """Largest error of outputs and gradients, relative to the largest entry of each.

        Args:
            judge: False for the reference itself, which need only be finite.

        Raises:
            WrongResult: one sentence; the runner is not to be timed.
        """
        results = self._results(self._problem, runner)
        worst = 0.0
        for name, exact in self._truth.items():
            size = exact.abs().max().item()
            error = _error(results[name], exact)
            module = self._problem.module is not None
            dtype = self._problem.shape.dtype if module else results[name].dtype
            allowed = (3 if module else 2) * self._own[name] + SLACK[dtype] * size
            if error != error or (judge and error > allowed):  # NaN fails whoever it is
                raise WrongResult(f"{name} is off by {error:.2g}, allowed {allowed:.2g}")
            worst = max(worst, error / size if size else 0.0)
        return worst

    def _results(
        self, problem: Problem, runner: Callable[[], tuple[Tensor, ...]]
    ) -> dict[str, Tensor]:
        """Outputs and gradients of the compared clips."""
        outputs = runner()
        floating = [out for out in outputs if out.requires_grad]
        if not self._cotangents:  # once, rounded to the compute dtype, the same for all
            narrow = self._problem.shape.dtype
            self._cotangents = [torch.randn_like(out).to(narrow).double() for out in floating]
        seeds = [torch.zeros_like(out) for out in floating]
        for seed, cotangent in zip(seeds, self._cotangents, strict=True):
            seed[-self._clips :] = cotangent.to(seed.dtype)
        leaves = problem.leaves()
        gradients = torch.autograd.grad(floating, list(leaves.values()), seeds) if leaves else ()
        results = {}
        for index, out in enumerate(outputs):
            last = out.detach()[-self._clips :]
            if not last.is_floating_point():
                last = self._in_order(last)
            results[f"output {index}"] = last
        for name, gradient in zip(leaves, gradients, strict=True):
            part = gradient[-self._clips :] if problem.per_clip(name) else gradient
            results[f"the gradient of {name}"] = part
        return results

    def _in_order(self, order: Tensor) -> Tensor:
        """The exact sorting keys in this order: two tokens whose keys differ by less than
        rounding may change places, and nothing else may be wrong. fp32."""
        tokens = torch.arange(order.shape[1], device=order.device)
        if not torch.equal(order.sort(dim=1).values, tokens.expand_as(order)):
            return torch.full(order.shape, float("nan"), device=order.device)
        return self._keys.gather(1, order).float()


def _sorting_keys(wide: Problem) -> Tensor:
    """log p plus Gumbel noise, fp64."""
    with torch.no_grad():
        log_p = wide.runner("reference")()[0]
    uniform = wide.inputs["uniform"]
    uniform = uniform.clamp_min(torch.finfo(uniform.dtype).tiny).double()
    return log_p - (-uniform.log()).log()


def _error(actual: Tensor, exact: Tensor) -> float:
    return (actual.double() - exact).abs().max().item()
