"""Labelled clips of things that move, made where they are needed: a pure function of numbers.

Legend: B clips, T frames of S x S pixels, D side of a sprite in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from tats_fast.config.generated import SceneConfig
from tats_fast.generated import surfaces
from tats_fast.generated.digits import load_digits
from tats_fast.generated.motions import CLASSES, Draw, Motion, Object, draw_motion
from tats_fast.generated.pictures import lay_pictures
from tats_fast.generated.surfaces import Outline, Surface
from tats_fast.generated.textures import noise_atlas

# Values rendered at once: what a processor's cache holds, or what keeps a GPU busy.
_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 27}
# Third words of seeds.
_ATLAS, _DRAW, _NOISE = range(3)
_OVERSAMPLING = 1.5


class SceneBatch(NamedTuple):
    """Generated clips, on the device they were made on."""

    clips: Tensor
    """(B, T, S, S, 3) uint8 RGB."""
    labels: Tensor
    """(B,) int64."""
    moving: Tensor
    """(B, T, S, S) bool: the pixel belongs to something that moves of itself, against the
    background. Where everything moves (``pan``), all True."""


class _Sprite(NamedTuple):
    surface: Surface
    shape: Outline | Tensor
    """A blob's, or (B,) numbers of digits."""
    half: Tensor
    """(B,) half a sprite's side, pixels of the clip."""


class _Plan(NamedTuple):
    """All numbers that decide a batch but for its noise."""

    motion: Motion
    ground: Surface
    sprites: list[_Sprite]


class Scenes:
    """An endless supply of labelled clips: any batch by its number, the same at every call.

    Scenes of different ``seed`` share no texture, shape or motion, so one may train and another
    test. (Pictures are the same few, in pieces and colours of their own; of the digits, even and
    odd seeds show different halves.) Nothing in ``batch`` waits for the device.

    Args:
        frames: T.
        side: S, pixels.
        seed: 0 or more.
    """

    def __init__(
        self,
        config: SceneConfig,
        frames: int,
        side: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.frames, self.side, self.seed = config, frames, side, seed
        self.device = torch.device(device)
        self.classes: tuple[str, ...] = CLASSES[config.task]
        # Pixels from the middle that a ground shows, the camera's way included.
        self._reach = side * (math.sqrt(0.5) + frames * 2.5 / 64)
        atlas_side = 128 * math.ceil(max(1024, 6 * self._reach) / 128)
        generator = _generator(self.device, seed, 0, _ATLAS)
        self._digits, self._alpha = None, None
        if config.task == "digit":
            self._digits = load_digits(seed % 2, f"{config.section}task")
            self._alpha = self._digits.alpha.to(self.device)
        self._atlas = noise_atlas(atlas_side, generator)
        if config.textures != "noise":
            share, key = 1.0 if config.textures == "images" else 0.5, f"{config.section}textures"
            lay_pictures(self._atlas, share, generator, key)

    @torch.no_grad()
    def batch(self, size: int, number: int) -> SceneBatch:
        """Clips of batch ``number``: a function of it, ``size`` and the seed alone. Every class is
        as likely as any other."""
        plan = self._plan(Draw(size, _generator("cpu", self.seed, number, _DRAW)))
        plan = _carried(plan, self.device)
        generator = _generator(self.device, self.seed, number, _NOISE)
        shape = (self.frames, self.side, self.side)
        clips = torch.empty((size, *shape, 3), dtype=torch.uint8, device=self.device)
        moving = torch.ones((size, *shape), dtype=torch.bool, device=self.device)
        step = max(1, _AT_ONCE[self.device.type] // (3 * math.prod(shape)))
        for first in range(0, size, step):
            part = slice(first, first + step)
            self._render(_mapped(plan, lambda t: t[part]), generator, clips[part], moving[part])  # noqa: B023
        return SceneBatch(clips, plan.motion.labels.long(), moving)

    def _plan(self, draw: Draw) -> _Plan:
        motion = draw_motion(self.config, self.frames, draw)
        looks = len({thing.look for thing in motion.objects})
        atlas_side, area = self._atlas.shape[-1], self.config.area / max(1, looks)
        ground = surfaces.draw_surface(draw, atlas_side, self._reach)
        sprites = []
        for _ in range(looks):
            if self._digits is None:
                shape = surfaces.draw_outline(draw)
                covered = surfaces.outline_area(shape) / (2 * surfaces.MARGIN) ** 2
            else:
                shape = self._digits.pick(motion.labels, draw.uniform(0, 1))
                covered = self._digits.ink[shape]
            half = self.side / 2 * (area / covered).sqrt()
            surface = surfaces.draw_surface(draw, atlas_side, reach=self.side / 2)
            sprites.append(_Sprite(surface, shape, half))
        return _Plan(motion, ground, sprites)

    def _render(
        self, plan: _Plan, generator: torch.Generator, clips: Tensor, moving: Tensor
    ) -> None:
        """Fill ``clips`` and ``moving`` (views of a few clips of the batch)."""
        frames = self._ground(plan)
        sprites = [self._picture(sprite) for sprite in plan.sprites]
        if plan.motion.objects:
            moving.zero_()
        for thing in plan.motion.objects:
            colours, alpha = self._placed(thing, sprites[thing.look], plan.sprites[thing.look])
            frames = torch.addcmul(frames + colours, frames, alpha, value=-1)
            moving |= (alpha[:, 0] > 0.5) & (thing.moves[:, None, None, None] > 0)
        frames = frames.expand(-1, -1, self.frames, -1, -1)
        noise = torch.randn(frames.shape, generator=generator, device=self.device)
        values = torch.add(frames, noise, alpha=self.config.noise).add_(0.5).clamp_(0, 255)
        clips.copy_(values.to(torch.uint8).permute(0, 2, 3, 4, 1))

    def _ground(self, plan: _Plan) -> Tensor:
        """(B, 3, T, S, S), or T = 1 where the camera is still."""
        way = plan.motion.camera * self.side
        x, y = (self._line() - way[..., i, None] for i in range(2))  # (B, T, S)
        return surfaces.paint(self._atlas, plan.ground, x[:, :, None], y[..., None])

    def _picture(self, sprite: _Sprite) -> Tensor:
        """(B, 4, D, D): red, green and blue times opacity, and opacity."""
        if self._alpha is None:
            # More pixels than it covers in the picture, because they are resampled.
            radius = self.side * math.sqrt(self.config.area / math.pi)
            side = math.ceil(2 * surfaces.MARGIN * radius * _OVERSAMPLING)
            alpha = surfaces.blob_alpha(sprite.shape, side, edge=surfaces.MARGIN / sprite.half)
        else:
            alpha = self._alpha[sprite.shape.long()]
        alpha, side = alpha[:, None], alpha.shape[-1]
        line = surfaces.line(side, self.device) * sprite.half[:, None]
        x, y = line[:, None, None], line[:, None, :, None]
        colours = surfaces.paint(self._atlas, sprite.surface, x, y)[:, :, 0].clamp(0, 255)
        return torch.cat([colours * alpha, alpha], dim=1)

    def _placed(self, thing: Object, picture: Tensor, sprite: _Sprite) -> tuple[Tensor, Tensor]:
        """An object over the picture: colours times opacity (B, 3, T, S, S), opacity
        (B, 1, T, S, S)."""
        half, place = self.side / 2, thing.place * self.side
        # The nearest of all repetitions: there is no border (``motions``).
        x, y = (
            torch.remainder(self._line() - place[..., i, None] + half, self.side) - half
            for i in range(2)
        )
        scale = 1 / (sprite.half[:, None] * thing.size)
        cos, sin = thing.angle.cos() * scale, thing.angle.sin() * scale
        zero = torch.zeros_like(cos)
        inverse = torch.stack(
            [torch.stack([cos, sin, zero], -1), torch.stack([-sin, cos, zero], -1)], dim=-2
        )
        places = surfaces.affine(inverse, x[:, :, None], y[..., None])  # (B, T, S, S, 2)
        layer = F.grid_sample(picture, places.flatten(1, 2), align_corners=False)
        layer = layer.unflatten(2, (-1, self.side))
        return layer[:, :3], layer[:, 3:]

    def _line(self) -> Tensor:
        """(S,) middles of the pixels, 0 in the picture's middle."""
        return surfaces.line(self.side, self.device) * (self.side / 2)


def moving_share(moving: Tensor, tubelet: int, patch: int) -> Tensor:
    """Share of each token's pixels that move.

    Args:
        moving: (B, T, S, S) bool.
        tubelet, patch: frames and side in pixels of a token.

    Returns:
        (B, N) fp32, tokens in the order of ``models.patchify``: frame, row, column.
    """
    return reduce(
        moving.float(), "b (f t) (i p) (j q) -> b (f i j)", "mean", t=tubelet, p=patch, q=patch
    )


def _generator(device: torch.device | str, *words: int) -> torch.Generator:
    """A generator whose seed is made of several numbers."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator(device).manual_seed(seed)


def _mapped(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``item`` with every tensor in it changed."""
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, list):
        return [_mapped(part, change) for part in item]
    return (
        type(item)(*(_mapped(part, change) for part in item)) if isinstance(item, tuple) else item
    )


def _carried(plan: _Plan, device: torch.device) -> _Plan:
    """``plan`` on the device, all its numbers in one copy that nobody waits for."""
    if device.type == "cpu":
        return plan
    parts: list[Tensor] = []
    _mapped(plan, lambda part: parts.append(part) or part)
    table = torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts], 1)
    table = table.pin_memory().to(device, non_blocking=True)
    widths = [part[0].numel() for part in parts]
    columns = iter(table.split(widths, dim=1))
    return _mapped(plan, lambda part: next(columns).reshape(part.shape))
