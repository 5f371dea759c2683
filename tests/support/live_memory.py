"""Memory that tensors take on a CPU: what is alive, and the peak of all that PyTorch allocates."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def alive() -> dict[int, int]:
    """Of tensors that Python knows, each memory once: address to bytes."""
    gc.collect()
    # Not their subclasses: what torch.compile traces with has no memory, and may be left alive.
    plain = (torch.Tensor, torch.nn.Parameter)
    found = [item for item in gc.get_objects() if type(item) in plain]
    storages = [tensor.untyped_storage() for tensor in found if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def peak_growth(work: Callable[[], Any], freed_unseen: bool = False) -> int:
    """Most bytes that were allocated at once during ``work`` beyond those before it.

    Args:
        freed_unseen: other threads free what this one took, as gloo's do, which the profiler does
            not see: what has no end and is not Python's afterwards counts as never taken.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    left = alive()
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    events = sorted(_allocations(tree), key=lambda event: event.start_time_ns)
    changes, open_at = [0] * (len(events) + 1), {}
    for index, event in enumerate(events):
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        if address in open_at:  # given out again, or freed
            start, taken = open_at.pop(address)
            changes[start] += taken
            changes[index] -= taken
        if size > 0:
            open_at[address] = (index, size)
    for address, (start, taken) in open_at.items():
        changes[start] += taken if address in left or not freed_unseen else 0
    now = peak = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    return peak


def _allocations(events: list[Any]) -> Iterator[Any]:
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event
        yield from _allocations(event.children)
