"""What happens in a batch of clips: positions, turns, sizes and surfaces, drawn on the host.

All classes of a task share every distribution except that of the motion itself, and time counts
from the middle of the clip, so that the opposite motion shows the same frames in reverse: who sees
frames without their order learns nothing of the class.

Legend: B clips, T frames, or 1 where nothing changes over time. Lengths in picture sides, x to the
right, y down, angles clockwise in radians, time in frames from the middle of the clip.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tats_fast.config.generated import SceneConfig

DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
"""The k-th direction is k * 45 degrees, clockwise from the right."""
CLASSES = {
    "pan": DIRECTIONS,
    "object": DIRECTIONS,
    "spin": ("clockwise", "counter-clockwise", "zoom-in", "zoom-out", "still"),
    "relation": ("approach", "separate", "follow", "pass"),
    "digit": tuple("0123456789"),
}
SPEED = (1 / 32, 2.5 / 32)
"""Sides per frame: 1 to 2.5 pixels of 32."""
CAMERA_SPEED = (0.5 / 32, 1.5 / 32)
TURN = (0.12, 0.3)
"""Radians per frame."""
GROWTH = (0.5, 0.9)
"""Logarithm of last over first size."""
WAY = (0.16, 0.28)
"""Way of each of two objects over the whole clip."""
DISTANCE = (0.34, 0.5)
"""Between their centres in the middle of the clip."""
TILT = 0.2
SPREAD = {"object": 1.0, "relation": 0.2, "digit": 0.4}
"""Range of places in the middle of the clip; where nothing is said, so that the object is whole."""


class Object(NamedTuple):
    """One thing per clip that moves as a rigid whole."""

    place: Tensor
    """(B, T, 2) centre; the picture's own centre is 0."""
    angle: Tensor
    """(B, T)."""
    size: Tensor
    """(B, T) over the size that covers ``area``."""
    moves: Tensor
    """(B,) 1 where it moves or turns against the background, 0 where it is part of it."""
    look: int = 0
    """Which of the clip's sprites it shows."""


class Motion(NamedTuple):
    """What moves in a batch, and how."""

    labels: Tensor
    """(B,) fp32 whole numbers."""
    camera: Tensor
    """(B, T, 2) how far everything is carried."""
    objects: list[Object]
    """From back to front; those of the background first."""


class Draw:
    """Random numbers of a batch, one row per clip, all from one generator."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) in [low, high)."""
        draws = torch.rand((self.size, *shape), generator=self.generator)
        return low + (high - low) * draws

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape), uniform in its logarithm."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) of mean 0 and deviation 1."""
        return torch.randn((self.size, *shape), generator=self.generator)

    def whole(self, below: int) -> Tensor:
        """(B,) whole numbers, as fp32."""
        return torch.randint(below, (self.size,), generator=self.generator).float()


def draw_motion(config: SceneConfig, frames: int, draw: Draw) -> Motion:
    """The motion of a batch of clips of ``frames`` frames."""
    time = torch.arange(frames) - (frames - 1) / 2
    labels = draw.whole(len(CLASSES[config.task]))
    if config.task == "pan":
        velocity = heading(labels * (math.pi / 4), draw.uniform(*SPEED))
        return Motion(labels, path(velocity, time), [])
    camera = torch.zeros(draw.size, 1, 2)
    if config.camera == "pan":
        anywhere = draw.uniform(0, 2 * math.pi)
        camera = path(heading(anywhere, draw.uniform(*CAMERA_SPEED)), time)
    spread = SPREAD.get(config.task, max(0.0, 1 - 2.4 * math.sqrt(config.area / math.pi)))
    still = [resting(draw, camera, spread, moves=False) for _ in range(config.distractors)]
    mover = resting(draw, camera, spread, moves=True)
    if config.task == "spin":
        movers = [_spinning(mover, labels, time, draw)]
    elif config.task == "relation":
        movers = _related(mover, labels, time, draw)
    else:
        angle = labels * (math.pi / 4) if config.task == "object" else draw.uniform(0, 2 * math.pi)
        movers = [
            mover._replace(place=mover.place + path(heading(angle, draw.uniform(*SPEED)), time))
        ]
    if config.task == "digit":  # upright, or a 6 would be a 9
        tilt = draw.uniform(-TILT, TILT, 1)
        still, movers = (
            [thing._replace(angle=tilt) for thing in things] for things in (still, movers)
        )
    return Motion(labels, camera, [*still, *movers])


def heading(angle: Tensor, speed: Tensor) -> Tensor:
    """(B,) angles and speeds -> (B, 2) velocities."""
    return speed[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def path(velocity: Tensor, time: Tensor) -> Tensor:
    """(B, 2) velocities -> (B, T, 2) ways from the middle of the clip."""
    return velocity[:, None] * time[:, None]


def resting(draw: Draw, camera: Tensor, spread: float, moves: bool) -> Object:
    """An object that rests on the background, at most ``spread`` / 2 from the middle.

    The picture has no border for objects: what leaves on one side comes in on the other. So places
    can be uniform in *every* frame, whatever the motion, and the share of the picture that moves
    never changes. With a border, who starts at the left could only go right.
    """
    place = draw.uniform(-spread / 2, spread / 2, 1, 2) + camera
    angle, size = draw.uniform(0, 2 * math.pi, 1), torch.ones(draw.size, 1)
    return Object(place, angle, size, torch.full((draw.size,), float(moves)))


def _spinning(rest: Object, labels: Tensor, time: Tensor, draw: Draw) -> Object:
    """Turning (classes 0 and 1), growing (2 and 3) or as it is (4)."""
    span = max(1, len(time) - 1)
    turn = ((labels == 0).float() - (labels == 1).float()) * draw.uniform(*TURN)
    growth = draw.uniform(*GROWTH)
    # What does not grow has the size of a growing one in some frame: sizes say nothing.
    moment = time[draw.whole(len(time)).long()][:, None]
    grows = ((labels == 2).float() - (labels == 3).float())[:, None]
    moment = torch.where(grows == 0, moment, grows * time) / span
    return rest._replace(
        angle=rest.angle + turn[:, None] * time,
        size=torch.exp(growth[:, None] * moment),
        moves=(labels != 4).float(),
    )


def _related(rest: Object, labels: Tensor, time: Tensor, draw: Draw) -> list[Object]:
    """Two objects around the place of ``rest`` that approach each other (class 0), go apart (1),
    follow one another (2) or pass (3).

    In the middle of the clip their distance is the same for all classes, and either alone moves in
    any direction: what they do shows in both together only.
    """
    span = max(1, len(time) - 1)
    axis, sign = draw.uniform(0, 2 * math.pi), draw.whole(2) * 2 - 1
    apart = heading(axis, draw.uniform(*DISTANCE) / 2)[:, None]
    speed = draw.uniform(*WAY) / span
    # Angle to the axis from the second object to the first, in which each of them goes.
    along, across = (1 - sign) * (math.pi / 2), sign * (math.pi / 2)
    first = torch.where(labels < 2, (1 - labels) * math.pi, torch.where(labels == 2, along, across))
    second = first + torch.where(labels == 2, 0.0, math.pi)
    other = rest._replace(angle=draw.uniform(0, 2 * math.pi, 1), look=1)
    return [
        thing._replace(place=rest.place + side * apart + path(heading(axis + angle, speed), time))
        for thing, side, angle in ((rest, 1, first), (other, -1, second))
    ]
