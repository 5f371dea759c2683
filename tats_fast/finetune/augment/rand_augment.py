"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719) for batches of video clips on their device.

Each clip gets its own operations, and all its frames the same ones. The set is the "increasing"
one of the timm library, in which every operation grows stronger with its magnitude; the defaults
below are what timm calls ``rand-m7-n4-mstd0.5-inc1``, the setting of VideoMAE's fine-tuning code.
Differences: extremes, histograms and means are those of the clip and not of each frame (see
``image_ops``), posterizing keeps at least one bit, and interpolation is always bilinear.

All draws are made on the host with a NumPy generator, so nothing waits for the device. Legend: B
clips, N operations per clip, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tats_fast.finetune.augment import image_ops

MAX_MAGNITUDE = 10.0
# Clips worked on at once, which bounds the memory. A GPU is kept busy by many; on a CPU the large
# buffers of many only cost time.
_MAX_GROUP = 16
_MAX_GROUP_CPU = 1

# (strength, height, width) to the parameter of an operation, or to its table.
_Parameter = Callable[[float, int, int], Sequence[float] | np.ndarray]


@dataclass(frozen=True)
class _Operation:
    apply: Callable[..., Tensor]
    parameter: _Parameter | None = None
    signed: bool = False


def _rotation(strength: float, height: int, width: int) -> Sequence[float]:
    """About the centre by up to 30 degrees, counter-clockwise where positive."""
    turn = math.radians(30 * strength)
    cos, sin, x, y = math.cos(turn), math.sin(turn), width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def _factor(strength: float, height: int, width: int) -> Sequence[float]:
    return (max(0.1, 1 + 0.9 * strength),)


def _table(function: Callable[[np.ndarray, float], np.ndarray]) -> _Parameter:
    """Of a map of levels, given the strength: (1, 256) uint8."""
    levels = np.arange(256)
    return lambda strength, height, width: np.clip(
        np.rint(function(levels, strength)), 0, 255
    ).astype(np.uint8)[None]


def _posterize(v: np.ndarray, strength: float) -> np.ndarray:
    # At full strength no bit would be left, and a black clip teaches nothing.
    dropped = 8 - max(1, 4 - int(4 * strength))
    return v >> dropped << dropped


def _solarize(v: np.ndarray, strength: float) -> np.ndarray:
    return np.where(v < 256 - int(256 * strength), v, 255 - v)


def _solarize_add(v: np.ndarray, strength: float) -> np.ndarray:
    return np.where(v < 128, v + int(110 * strength), v)


def _brighten(v: np.ndarray, strength: float) -> np.ndarray:
    return v * _factor(strength, 0, 0)[0]


# Strength is the magnitude as a share of the greatest one, and below 0 for a negative sign. Shears
# and shifts go as with Pillow's transform: a positive one takes pixels from further right or down.
_OPERATIONS = {
    "auto_contrast": _Operation(image_ops.auto_contrast),
    "equalize": _Operation(image_ops.equalize),
    "invert": _Operation(image_ops.apply_tables, _table(lambda v, s: 255 - v)),
    "rotate": _Operation(image_ops.affine, _rotation, signed=True),
    "posterize": _Operation(image_ops.apply_tables, _table(_posterize)),
    "solarize": _Operation(image_ops.apply_tables, _table(_solarize)),
    "solarize_add": _Operation(image_ops.apply_tables, _table(_solarize_add)),
    "color": _Operation(image_ops.adjust_color, _factor, signed=True),
    "contrast": _Operation(image_ops.adjust_contrast, _factor, signed=True),
    "brightness": _Operation(image_ops.apply_tables, _table(_brighten), signed=True),
    "sharpness": _Operation(image_ops.adjust_sharpness, _factor, signed=True),
    "shear_x": _Operation(image_ops.affine, lambda s, h, w: (1, 0.3 * s, 0, 0, 1, 0), signed=True),
    "shear_y": _Operation(image_ops.affine, lambda s, h, w: (1, 0, 0, 0.3 * s, 1, 0), signed=True),
    "translate_x": _Operation(
        image_ops.affine, lambda s, h, w: (1, 0, 0.45 * s * w, 0, 1, 0), signed=True
    ),
    "translate_y": _Operation(
        image_ops.affine, lambda s, h, w: (1, 0, 0, 0, 1, 0.45 * s * h), signed=True
    ),
}
OPERATIONS = tuple(_OPERATIONS)


@dataclass(frozen=True)
class Plan:
    """What to do with each clip, in the order of the columns; arrays of (B, N)."""

    operations: np.ndarray
    """int64, places in ``OPERATIONS``."""
    applied: np.ndarray
    """bool; False = leave this one out."""
    magnitudes: np.ndarray
    """fp64 in [0, 10]."""
    signs: np.ndarray
    """-1 or 1, for operations that have two directions."""


def draw_plan(
    clips: int,
    rng: np.random.Generator,
    *,
    ops: int = 4,
    magnitude: float = 7.0,
    deviation: float = 0.5,
    probability: float = 0.5,
) -> Plan:
    """Draw ``ops`` operations per clip, uniformly and with replacement.

    Args:
        clips: B. ops: N.
        magnitude, deviation: of a normal distribution; what it draws is clipped to [0, 10].
        probability: of applying an operation at all, for each on its own.

    Raises:
        ValueError: an argument out of range.
    """
    if ops < 0:
        raise ValueError(f"ops={ops}: expected at least 0")
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(f"magnitude={magnitude}: expected 0 to 10")
    if not 0 <= deviation < math.inf:
        raise ValueError(f"deviation={deviation}: expected at least 0")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}: expected 0 to 1")
    shape = (clips, ops)
    return Plan(
        operations=rng.integers(len(OPERATIONS), size=shape),
        applied=rng.random(shape) < probability,
        magnitudes=rng.normal(magnitude, deviation, shape).clip(0, MAX_MAGNITUDE),
        signs=rng.choice((-1, 1), shape),
    )


def rand_augment(clips: Tensor, rng: np.random.Generator, **drawing: float) -> Tensor:
    """Apply to each clip operations drawn by ``draw_plan``.

    Besides the batch and the result, memory is taken for copies of the batch, between one and
    ``ops``, and for up to 16 clips at a time (one on a CPU) of at most 16 bytes per value: 37 MiB
    for each of these clips if they have 16 frames of 224 x 224.

    Args:
        clips: (B, T, H, W, 3) uint8, RGB, on any device. Not changed.
        rng: on the host.
        drawing: how many operations and how strong, for ``draw_plan``.

    Returns:
        New clips of the same shape.

    Raises:
        ValueError: other clips, or an argument out of range.
    """
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or not clips.numel():
        raise ValueError(
            f"clips of shape {tuple(clips.shape)} and {clips.dtype}: expected (B, T, H, W, 3), "
            "uint8, not empty"
        )
    plan = draw_plan(len(clips), rng, **drawing)
    return apply_plan(clips, plan, _MAX_GROUP_CPU if clips.device.type == "cpu" else _MAX_GROUP)


def apply_plan(clips: Tensor, plan: Plan, max_group: int = _MAX_GROUP) -> Tensor:
    """(B, T, H, W, 3) uint8 to the same, new.

    Up to ``max_group`` clips with operations of one kind go together; all geometric ones are affine
    maps, and most others are tables of levels.
    """
    height, width = clips.shape[2:4]
    done = list(clips.unbind())
    for layer in range(plan.operations.shape[1]):
        for apply, members in _groups(plan, layer, max_group):
            values = [
                operation.parameter(strength, height, width)
                for _, operation, strength in members
                if operation.parameter
            ]
            parameters = [_to_device(values, clips.device)] if values else []
            changed = apply(torch.stack([done[clip] for clip, _, _ in members]), *parameters)
            for (clip, _, _), result in zip(members, changed.unbind(), strict=True):
                done[clip] = result
    return torch.stack(done)


# A clip's place in the batch, its operation and the strength of that.
_Member = tuple[int, _Operation, float]


def _groups(
    plan: Plan, layer: int, max_group: int
) -> list[tuple[Callable[..., Tensor], list[_Member]]]:
    """Functions to call for a layer, and which clips each serves."""
    groups: dict[Callable[..., Tensor], list[_Member]] = {}
    for clip in plan.applied[:, layer].nonzero()[0].tolist():
        operation = _OPERATIONS[OPERATIONS[plan.operations[clip, layer]]]
        sign = plan.signs[clip, layer] if operation.signed else 1
        strength = float(sign * plan.magnitudes[clip, layer] / MAX_MAGNITUDE)
        groups.setdefault(operation.apply, []).append((clip, operation, strength))
    return [
        (apply, members[start : start + max_group])
        for apply, members in groups.items()
        for start in range(0, len(members), max_group)
    ]


def _to_device(values: Sequence, device: torch.device) -> Tensor:
    """fp32, or uint8 for tables; from pinned memory, as a GPU copies others only while we wait."""
    array = np.asarray(values)
    tensor = torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
