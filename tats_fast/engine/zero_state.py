"""The optimizer state that DeepSpeed's ZeRO splits among processes, put together and split again.

A checkpoint holds it whole and as plain AdamW has it, so that any number of processes and any
engine can go on from it. DeepSpeed's own way to a parameter's moments finds only those of the
first group (0.19.8), so the fragments are copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
Groups = Sequence[Sequence[nn.Parameter]]
"""The parameters that each group of the optimizer had before DeepSpeed put one flat partition in
their place."""


def whole_state(zero: Any, groups: Groups) -> dict[str, Any]:
    """``state_dict`` of a plain AdamW over ``groups``, whole on the first process alone and its
    moments on the host. All processes call it.

    Args:
        zero: DeepSpeed's optimizer of stage 1 or 2.
    """
    state: dict[int, dict[str, Tensor]] = {}
    described: list[dict[str, Any]] = []
    first = 0
    for parameters, settings, own in zip(
        groups, zero.optimizer.param_groups, _states(zero), strict=True
    ):
        numbers = list(range(first, first + len(parameters)))
        first += len(parameters)
        described.append({**settings, "params": numbers})
        if "step" not in own:  # no update yet
            continue
        for number, parameter in zip(numbers, parameters, strict=True):
            moments = {name: _put_together(parameter, own[name]) for name in MOMENTS}
            state[number] = {"step": own["step"].clone(), **moments}
    return {"state": state, "param_groups": described}


def share_out(state: dict[str, Any], zero: Any, groups: Groups) -> None:
    """Give each process its part of a plain AdamW's ``state_dict``, and of the weights that the
    parameters have by now. Settings such as weight decay stay as they are.

    Raises:
        ValueError: the state is that of other parameters.
    """
    zero.refresh_fp32_params()
    moments = state["state"]
    if not moments:
        return
    shapes = [parameter.shape for group in groups for parameter in group]
    if shapes != [moments[number]["exp_avg"].shape for number in sorted(moments)]:
        raise ValueError("the optimizer's state is that of other parameters")
    first = 0
    flats = zero.single_partition_of_fp32_groups
    for parameters, flat, own in zip(groups, flats, _states(zero), strict=True):
        own["step"] = moments[first]["step"].to(flat.device, copy=True)
        for name in MOMENTS:
            own[name] = torch.zeros_like(flat)
            for number, parameter in enumerate(parameters, start=first):
                _take_part(parameter, moments[number][name], own[name])
        first += len(parameters)


def _states(zero: Any) -> list[dict[str, Any]]:
    """This process's part of each group's state."""
    return [zero.optimizer.state[flat] for flat in zero.single_partition_of_fp32_groups]


def _put_together(parameter: nn.Parameter, flat: Tensor) -> Tensor:
    """One parameter's values on the first process, from those that processes hold in ``flat``."""
    whole = torch.zeros(parameter.numel(), dtype=flat.dtype, device=parameter.device)
    places = _places(parameter)
    if places is not None:
        here, there = places
        whole[here].copy_(flat[there])
    dist.reduce(whole, 0, group=parameter._dp_group)
    return whole.view(parameter.shape).cpu()


def _take_part(parameter: nn.Parameter, whole: Tensor, flat: Tensor) -> None:
    """The reverse, from the whole on every process."""
    places = _places(parameter)
    if places is not None:
        here, there = places
        flat[there].copy_(whole.flatten()[here])


def _places(parameter: nn.Parameter) -> tuple[slice, slice] | None:
    """Which of a parameter's elements this process keeps, and where in its flat partition; None =
    none of them."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return slice(here.start, here.start + here.numel), slice(there.start, there.start + there.numel)
