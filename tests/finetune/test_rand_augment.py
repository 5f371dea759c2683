"""RandAugment for clips against Pillow, and its draws against what they should be on average."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tats_fast.finetune.augment import image_ops
from tats_fast.finetune.augment.rand_augment import (
    OPERATIONS,
    Plan,
    apply_plan,
    draw_plan,
    rand_augment,
)

T, H, W = 3, 40, 60  # H and W differ: a swap would show
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TWO_WAYS = (*GEOMETRIC, "color", "contrast", "brightness", "sharpness")
OF_THE_CLIP = ("auto_contrast", "equalize", "contrast")
FILL = (124, 116, 104)
STRENGTHS = (-10.0, -7.3, -2.0, 0.0, 3.1, 7.0, 10.0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """(count, H, W, 3) uint8: no two rows, columns, channels or pictures alike, no symmetry, and
    other extremes in each channel of each picture. Smooth, with some noise."""
    rng = generator(seed)
    y, x = np.mgrid[0:H, 0:W] / (H, W)[0]
    slopes, low = rng.uniform(30, 60, (2, count, 1, 1, 3)), rng.uniform(35, 60, (count, 1, 1, 3))
    smooth = low + slopes[0] * y[..., None] ** 2 + slopes[1] * x[..., None]
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def clips(count: int, frames: int = T) -> torch.Tensor:
    return torch.from_numpy(pictures(count * frames)).unflatten(0, (count, frames))


def plan(*layers: list[tuple[str, float]]) -> Plan:
    """From (operation, signed magnitude) of each clip, layer by layer; all applied."""
    table = np.array([[OPERATIONS.index(name) for name, _ in layer] for layer in layers]).T
    signed = np.array([[value for _, value in layer] for layer in layers]).T
    signs = np.where(signed < 0, -1, 1)
    return Plan(table, np.ones(table.shape, bool), np.abs(signed), signs)


def applied(batch: torch.Tensor, name: str, signed: float) -> torch.Tensor:
    return apply_plan(batch, plan([(name, signed)] * len(batch)))


def pillow(picture: np.ndarray, name: str, signed: float) -> np.ndarray:
    """What Pillow makes of (H, W, 3), by the definitions of timm's increasing set."""
    image, part, strength = Image.fromarray(picture), abs(signed) / 10, signed / 10
    coefficients = {
        "shear_x": (1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": (1, 0, 0.45 * strength * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * strength * image.height),
    }
    filled = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
    enhancers = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name == "rotate":
        image = image.rotate(30 * strength, **filled)
    elif name in coefficients:
        affine = Image.Transform.AFFINE
        image = image.transform(image.size, affine, coefficients[name], **filled)
    elif name in enhancers:
        image = enhancers[name](image).enhance(max(0.1, 1 + 0.9 * strength))
    elif name == "auto_contrast":
        image = ImageOps.autocontrast(image)
    elif name == "equalize":
        image = ImageOps.equalize(image)
    elif name == "invert":
        image = ImageOps.invert(image)
    elif name == "posterize":
        image = ImageOps.posterize(image, max(1, 4 - int(part * 4)))
    elif name == "solarize":
        image = ImageOps.solarize(image, 256 - int(part * 256))
    else:
        assert name == "solarize_add"
        image = image.point([v + int(part * 110) if v < 128 else v for v in range(256)] * 3)
    return np.asarray(image)


def shown(name: str, signed: float) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) bool each: pixels of a moved frame that are made of none of its outermost pixels, and
    pixels that show what is more than a pixel outside."""
    white = np.full((H, W, 3), 255, np.uint8)
    core = np.zeros_like(white)
    core[1:-1, 1:-1] = 255
    inside = (pillow(core, name, signed) == 255).all(axis=2)
    outside = np.pad((pillow(white, name, signed) == FILL).all(axis=2), 1)
    grown = np.asarray(Image.fromarray(outside).filter(ImageFilter.MinFilter(3)))
    return inside, grown[1:-1, 1:-1]


@pytest.mark.parametrize("name", OPERATIONS)
def test_single_frames_equal_pillow(name):
    batch = clips(len(STRENGTHS), frames=1)
    result = apply_plan(batch, plan([(name, s) for s in STRENGTHS])).numpy()
    # Where values are blended we round and Pillow cuts off, and its contrast rounds the mean too.
    allowed = dict.fromkeys(TWO_WAYS, 1) | {"auto_contrast": 1, "contrast": 2}
    for before, after, strength in zip(batch.numpy(), result, STRENGTHS, strict=True):
        expected = pillow(before[0], name, strength)
        off = np.abs(after[0].astype(int) - expected)
        if name in GEOMETRIC:
            inside, outside = shown(name, strength)
            assert inside.mean() > 0.4 and (abs(strength) < 3 or outside.any())
            assert off[inside].max() <= allowed[name], strength
            assert (after[0][outside] == FILL).all()
        else:
            assert off.max() <= allowed.get(name, 0), strength
        if strength > 5:
            assert np.abs(expected.astype(int) - before[0]).max() > 10  # else nothing was tested


def test_auto_contrast_reaches_both_ends():
    ends = applied(clips(3), "auto_contrast", 7.0).flatten(1, 3).aminmax(dim=1)
    assert (ends.min == 0).all() and (ends.max == 255).all()


@pytest.mark.parametrize("name", OF_THE_CLIP)
def test_statistics_are_those_of_the_clip(name):
    """As Pillow's of one tall picture made of all frames."""
    batch = clips(2, frames=4)
    batch[:, 1] //= 2
    result = applied(batch, name, 7.0)
    for before, after in zip(batch.numpy(), result.numpy(), strict=True):
        expected = pillow(before.reshape(4 * H, W, 3), name, 7.0).astype(int)
        assert np.abs(after.reshape(4 * H, W, 3) - expected).max() <= 2
        framewise = pillow(before[1], name, 7.0).astype(int)
        assert np.abs(after[1] - framewise).max() > 10


@pytest.mark.parametrize("name", OPERATIONS)
def test_all_frames_are_treated_alike(name):
    still = clips(2, frames=1)
    once = applied(still, name, 7.0)
    result = applied(still.expand(-1, T, -1, -1, -1), name, 7.0)
    assert torch.equal(result, result[:, :1].expand_as(result))
    if name != "equalize":  # its rounding depends on the number of pixels
        assert torch.equal(result[:, :1], once)
    if name not in OF_THE_CLIP:
        moving = clips(2)
        frames = [applied(moving[:, t : t + 1], name, 7.0) for t in range(T)]
        assert torch.equal(applied(moving, name, 7.0), torch.cat(frames, dim=1))


def test_groups_make_no_difference():
    """20 clips, three layers, all operations and strengths mixed; some left out."""
    batch, drawn = clips(20), draw_plan(20, generator(3), ops=3, deviation=4.0, probability=0.8)
    alone = []
    for index in range(20):
        own = Plan(*(part[index : index + 1] for part in vars(drawn).values()))
        alone.append(apply_plan(batch[index : index + 1], own))
    for group in (1, 2, 16):
        assert torch.equal(apply_plan(batch, drawn, group), torch.cat(alone))


def test_operations_follow_one_another():
    first, then = [("solarize", 7.0), ("translate_x", 5.0)], [("invert", 1.0), ("rotate", -7.0)]
    batch = clips(2)
    steps = apply_plan(apply_plan(batch, plan(first)), plan(then))
    assert torch.equal(apply_plan(batch, plan(first, then)), steps)
    assert not torch.equal(apply_plan(batch, plan(then, first)), steps)


def test_signs_of_geometric_operations():
    """A white square right of the centre and above it; where is its middle afterwards?"""
    batch = torch.zeros(5, 1, 41, 41, 3, dtype=torch.uint8)
    batch[:, :, 10:13, 26:29] = 255
    # Upwards it would leave the frame.
    signed = [-10.0 if name == "translate_y" else 10.0 for name in GEOMETRIC]
    moved = apply_plan(batch, plan(list(zip(GEOMETRIC, signed, strict=True))))
    light = (moved.float() - torch.tensor(FILL)).clamp_min(0).amax(-1)[:, 0]
    rows, columns = (
        (light.sum(other) * (torch.arange(41) + 0.5)).sum(1) / light.sum((1, 2)) for other in (2, 1)
    )
    x, y, cos, sin = 27.5 - 20.5, 11.5 - 20.5, math.cos(math.pi / 6), 0.5
    expected = [
        (20.5 + cos * x + sin * y, 20.5 - sin * x + cos * y),  # counter-clockwise, y downwards
        (27.5 - 0.3 * 11.5, 11.5),
        (27.5, 11.5 - 0.3 * 27.5),
        (27.5 - 0.45 * 41, 11.5),
        (27.5, 11.5 + 0.45 * 41),
    ]
    assert columns.tolist() == pytest.approx([x for x, _ in expected], abs=0.3)
    assert rows.tolist() == pytest.approx([y for _, y in expected], abs=0.3)


@pytest.mark.parametrize("name", [*TWO_WAYS, "solarize", "solarize_add"])
def test_magnitude_zero_changes_nothing(name):
    batch = clips(2)
    for zero in (0.0, -0.0):
        assert torch.equal(applied(batch, name, zero), batch)


def test_posterizing_leaves_a_bit_even_at_ten():
    assert set(applied(clips(1), "posterize", 10.0).unique().tolist()) == {0, 128}


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_a_channel_of_one_value_is_left_alone(name):
    batch = clips(1)
    batch[..., 1] = 77
    result = applied(batch, name, 7.0)
    assert (result[..., 1] == 77).all() and not torch.equal(result[..., 0], batch[..., 0])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (224, 3)])
def test_any_size(size):
    batch = torch.randint(0, 256, (15, 2, *size, 3), dtype=torch.uint8)
    result = apply_plan(batch, plan([(name, 7.0) for name in OPERATIONS]))
    assert result.shape == batch.shape and result.dtype == torch.uint8


def test_nothing_applied_gives_an_equal_copy():
    batch = clips(2)
    for setting in ({"ops": 0}, {"probability": 0.0}):
        result = rand_augment(batch, generator(), **setting)
        assert torch.equal(result, batch)
        result.zero_()
        assert batch.any()


def test_input_stays_and_may_be_strided():
    batch = clips(6)
    before, settings = batch.clone(), {"probability": 1.0}
    result = rand_augment(batch, generator(), **settings)
    assert torch.equal(batch, before) and result.is_contiguous()
    strided = batch.permute(4, 3, 0, 2, 1).contiguous().permute(2, 4, 3, 1, 0)
    assert not strided.is_contiguous()
    assert torch.equal(rand_augment(strided, generator(), **settings), result)


def test_operations_leave_their_input():
    batch, factors = clips(2), torch.full((2, 1), 1.6)
    before = batch.clone()
    image_ops.apply_tables(batch, torch.zeros(2, 3, 256, dtype=torch.uint8))
    image_ops.affine(batch, torch.tensor([[1.0, 0, 9, 0, 1, 0]] * 2))
    for operation in (image_ops.auto_contrast, image_ops.equalize):
        operation(batch)
    for adjust in ("contrast", "color", "sharpness"):
        getattr(image_ops, f"adjust_{adjust}")(batch, factors)
    assert torch.equal(batch, before)


def test_same_generator_same_result_and_no_other_chance():
    batch = clips(4)
    state = torch.get_rng_state()
    first = rand_augment(batch, generator(1))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert torch.equal(rand_augment(batch, generator(1)), first)
    assert not torch.equal(rand_augment(batch, generator(2)), first)
    torch.set_rng_state(state)
    rng = generator(1)
    assert torch.equal(rand_augment(batch, rng), first)
    assert not torch.equal(rand_augment(batch, rng), first)  # the next batch is another one
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_reach_the_plan():
    settings = {"ops": 2, "magnitude": 3.0, "deviation": 2.0, "probability": 0.7}
    expected = apply_plan(clips(8), draw_plan(8, generator(4), **settings))
    assert torch.equal(rand_augment(clips(8), generator(4), **settings), expected)


def test_equal_clips_get_different_draws():
    batch = clips(1).expand(12, -1, -1, -1, -1)
    result = rand_augment(batch, generator(), probability=1.0)
    same = [torch.equal(a, b) for a, b in itertools.combinations(result, 2)]
    # Two of 12 clips with the same four operations, equally strong: none expected.
    assert not any(same)


def test_draws_have_their_distribution():
    """Of 16000 draws; a deviation of more than four of a mean's own happens once in 16000."""
    drawn = draw_plan(4000, generator(), probability=0.3, magnitude=6.0)
    n = drawn.operations.size
    assert n == 16000
    assert abs(drawn.applied.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    assert abs(drawn.magnitudes.mean() - 6.0) < 4 * 0.5 / math.sqrt(n)
    assert abs(drawn.magnitudes.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * n)
    assert set(np.unique(drawn.signs)) == {-1, 1}
    assert abs(drawn.signs.mean()) < 4 / math.sqrt(n)
    # Chi-squared with 14 degrees of freedom: mean 14, deviation sqrt(28) = 5.3.
    counts = np.bincount(drawn.operations.ravel(), minlength=15)
    assert counts.shape == (15,) and ((counts - n / 15) ** 2 / (n / 15)).sum() < 14 + 5 * 5.3
    # With replacement: four are all different with probability 14 * 13 * 12 / 15^3.
    ordered = np.sort(drawn.operations, axis=1)
    distinct, share = (np.diff(ordered) > 0).all(axis=1).mean(), 14 * 13 * 12 / 15**3
    assert abs(distinct - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    # No draw follows from another, of the same clip or the next: correlations deviate from 0 by
    # about 1 / sqrt(n).
    parts = [part.astype(float) for part in vars(drawn).values()]
    pairs = list(itertools.combinations(parts, 2))
    pairs += [(part[:, :-1], part[:, 1:]) for part in parts]
    pairs += [(part[:-1], part[1:]) for part in parts]
    between = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs]
    assert np.abs(between).max() < 4.5 / math.sqrt(n * 3 / 4)


def test_magnitudes_stay_between_zero_and_ten():
    for centre, bound in ((10.0, 10.0), (0.0, 0.0)):
        magnitudes = draw_plan(1000, generator(), magnitude=centre, deviation=2.0).magnitudes
        assert magnitudes.min() >= 0 and magnitudes.max() <= 10
        # Half of 4000 lie beyond, with a deviation of sqrt(1/4 / 4000).
        assert abs((magnitudes == bound).mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert (draw_plan(9, generator(), magnitude=7.0, deviation=0.0).magnitudes == 7).all()


def test_results_never_decide_what_runs():
    """The meta device has no values: all that waits for them fails there."""
    batch = torch.empty(40, T, H, W, 3, dtype=torch.uint8, device="meta")
    assert rand_augment(batch, generator(), probability=1.0).shape == batch.shape


def test_autocast_leaves_the_precision():
    batch = clips(15)
    mixed = plan([(name, 7.0) for name in OPERATIONS])
    with torch.autocast("cpu", torch.bfloat16):
        inside = apply_plan(batch, mixed)
    assert torch.equal(inside, apply_plan(batch, mixed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_gives_the_same_without_waiting():
    batch, drawn = clips(40), draw_plan(40, generator(), probability=1.0, ops=1)
    there = batch.cuda()
    apply_plan(there, drawn)  # first use of a library may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = apply_plan(there, drawn)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Other roundings of a product can tip a half to the other side.
    assert (result.cpu().int() - apply_plan(batch, drawn).int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 3, 8, 8, 3), "uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(B, T, H, W, 3\)"),
        (torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8), r"\(B, T, H, W, 3\)"),
        (torch.zeros(2, 0, 8, 8, 3, dtype=torch.uint8), "not empty"),
    ],
)
def test_other_clips_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        rand_augment(wrong, generator())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ops": -1},
        {"magnitude": 10.5},
        {"magnitude": math.nan},
        {"deviation": -0.1},
        {"deviation": math.inf},
        {"probability": 1.1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*expected"):
        rand_augment(clips(1), generator(), **wrong)
