"""What DeepSpeed's ZeRO splits among processes, put together and split again: the optimizer's state
and, in stage 3, the weights.

A checkpoint holds both whole and as plain AdamW has them, so that any number of processes and any
engine can go on from it. DeepSpeed's own way to a parameter's moments finds in stages 1 and 2 only
those of the first group (0.19.8), so the fragments are copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
Groups = Sequence[Sequence[nn.Parameter]]
"""The parameters that each group of the optimizer had before DeepSpeed put flat partitions in their
place."""


class _Fragment(NamedTuple):
    """The elements of a parameter that this process keeps: ``here`` in the parameter, ``there`` in
    the tensor ``flat``."""

    flat: Tensor
    here: slice
    there: slice


def whole_state(zero: Any, groups: Groups) -> dict[str, Any]:
    """``state_dict`` of a plain AdamW over ``groups``, whole on the first process alone and its
    moments on the host. All processes call it.

    Args:
        zero: DeepSpeed's optimizer of stage 1, 2 or 3.
    """
    fragments = _fragments(zero, groups)
    state: dict[int, dict[str, Tensor]] = {}
    described: list[dict[str, Any]] = []
    first = 0
    for parameters, settings in zip(groups, zero.optimizer.param_groups, strict=True):
        numbers = list(range(first, first + len(parameters)))
        first += len(parameters)
        described.append({**settings, "params": numbers})
        for number, parameter in zip(numbers, parameters, strict=True):
            fragment = fragments[id(parameter)]
            own = zero.optimizer.state[fragment.flat]
            if "step" not in own:  # no update yet
                continue
            moments = {
                name: _put_together(parameter, own[name], fragment).cpu() for name in MOMENTS
            }
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
    parameters = [parameter for group in groups for parameter in group]
    shapes = [_shape(parameter) for parameter in parameters]
    if shapes != [moments[number]["exp_avg"].shape for number in sorted(moments)]:
        raise ValueError("the optimizer's state is that of other parameters")
    fragments = _fragments(zero, groups)
    begun: set[int] = set()
    for number, parameter in enumerate(parameters):
        flat, here, there = fragments[id(parameter)]
        own = zero.optimizer.state[flat]
        if id(flat) not in begun:
            begun.add(id(flat))
            own["step"] = moments[number]["step"].to(flat.device, copy=True)
            own.update({name: torch.zeros_like(flat) for name in MOMENTS})
        for name in MOMENTS:
            own[name][there].copy_(moments[number][name].flatten()[here])


def whole_weights(module: nn.Module, device: torch.device, everywhere: bool) -> dict[str, Tensor]:
    """The ``state_dict`` of a module that stage 3 has split, on the host: of the first process or,
    with ``everywhere``, of each; elsewhere it is empty. All processes call it."""
    state = {}
    for name, parameter in module.named_parameters():
        part = parameter.ds_tensor
        whole = _put_together(parameter, part, _own_part(parameter, part), device, everywhere)
        if everywhere or dist.get_rank() == 0:
            state[name] = whole.cpu()
    return state


@torch.no_grad()
def split_weights(state: dict[str, Tensor], module: nn.Module, zero: Any) -> None:
    """Give each process its part of whole weights, which every process has.

    Raises:
        RuntimeError: they are not those of ``module``; one line.
    """
    parameters = dict(module.named_parameters())
    if wrong := sorted(parameters.keys() ^ state.keys()):
        raise RuntimeError(f"{wrong[0]} is {'unknown' if wrong[0] in state else 'missing'}")
    for name, parameter in parameters.items():
        if state[name].shape != _shape(parameter):
            expected, got = tuple(_shape(parameter)), tuple(state[name].shape)
            raise RuntimeError(f"{name} has shape {got}, expected {expected}")
    zero.checkpoint_event_prologue()  # the small ones, which are kept whole, are let go ...
    for name, parameter in parameters.items():
        part, here, there = _own_part(parameter, parameter.ds_tensor)
        part[there].copy_(state[name].flatten()[here])
    zero.checkpoint_event_epilogue()  # ... and gathered anew
    zero.refresh_fp32_params()


def state_device(zero: Any) -> torch.device:
    """Where the update is computed: the host, where the optimizer's state is offloaded."""
    return _flats(zero)[0].device


def _flats(zero: Any) -> list[Tensor]:
    """The partitions of fp32 weights that the optimizer updates."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3
        return zero.fp32_partitioned_groups_flat
    return zero.single_partition_of_fp32_groups


def _shape(parameter: nn.Parameter) -> torch.Size:
    """That of the whole parameter, also where stage 3 has split it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _fragments(zero: Any, groups: Groups) -> dict[int, _Fragment]:
    """By the ``id`` of each parameter."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return _fragments_of_stage_3(zero)
    return {
        id(parameter): _Fragment(flat, *_places(parameter))
        for parameters, flat in zip(groups, _flats(zero), strict=True)
        for parameter in parameters
    }


def _fragments_of_stage_3(zero: Any) -> dict[int, _Fragment]:
    found = {}
    for parameters, flat in zip(zero.fp16_groups, _flats(zero), strict=True):
        first = 0
        for parameter in parameters:
            _, here, there = _own_part(parameter, flat)
            found[id(parameter)] = _Fragment(flat, here, slice(first, first + there.stop))
            first += parameter.partition_numel()
    return found


def _own_part(parameter: nn.Parameter, part: Tensor) -> _Fragment:
    """Stage 3 cuts each parameter into equal parts, the last of them filled up."""
    size = parameter.partition_numel()
    begin = min(size * dist.get_rank(parameter.ds_process_group), parameter.ds_numel)
    end = min(begin + size, parameter.ds_numel)
    return _Fragment(part, slice(begin, end), slice(0, end - begin))


def _places(parameter: nn.Parameter) -> tuple[slice, slice]:
    """Stages 1 and 2 cut a group's parameters where it falls: this process may have none of it."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return slice(0, 0), slice(0, 0)
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return slice(here.start, here.start + here.numel), slice(there.start, there.start + there.numel)


def _put_together(
    parameter: nn.Parameter,
    flat: Tensor,
    fragment: _Fragment,
    device: torch.device | None = None,
    everywhere: bool = False,
) -> Tensor:
    """One parameter's values on the first process, or ``everywhere``, from the parts that processes
    hold in ``flat``."""
    shape = _shape(parameter)
    device = parameter.device if device is None else device
    whole = torch.zeros(shape.numel(), dtype=flat.dtype, device=device)
    whole[fragment.here].copy_(flat.detach()[fragment.there])
    group = getattr(parameter, "ds_process_group", None) or parameter._dp_group
    if everywhere:
        dist.all_reduce(whole, group=group)
    else:
        dist.reduce(whole, 0, group=group)
    return whole.view(shape)
