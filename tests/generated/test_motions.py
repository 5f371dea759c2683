"""What objects do, before it becomes pictures."""

from __future__ import annotations

import math

import torch

from tats_fast.generated import SceneConfig
from tats_fast.generated.motions import CLASSES, Draw, draw_motion

CLIPS = 4000


def drawn(frames=7, **settings):
    draw = Draw(CLIPS, torch.Generator().manual_seed(0))
    return draw_motion(SceneConfig(**settings), frames, draw)


def angles(ways: torch.Tensor) -> torch.Tensor:
    return torch.atan2(ways[:, 1], ways[:, 0])


def assert_uniform_angles(ways: torch.Tensor) -> None:
    """The first two moments of a circle."""
    for order in (1, 2):
        turned = order * angles(ways)
        mean = torch.stack([turned.cos().mean(), turned.sin().mean()])
        assert mean.norm() < 4 / math.sqrt(len(ways))


def test_two_objects_do_what_their_class_says():
    motion = drawn(task="relation")
    one, other = motion.objects
    distance = (one.place - other.place).norm(dim=-1)
    change = distance[:, 1:] - distance[:, :-1]
    approach, separate, follow, passing = ((motion.labels == k) for k in range(4))
    assert (change[approach] < 0).all()
    assert (change[separate] > 0).all()
    assert change[follow].abs().max() < 1e-6
    assert (change[passing][:, :3] < 0).all() and (change[passing][:, 3:] > 0).all()
    way, other_way = (thing.place[:, -1] - thing.place[:, 0] for thing in (one, other))
    torch.testing.assert_close(way[follow], other_way[follow])
    torch.testing.assert_close(way[~follow], -other_way[~follow], atol=1e-6, rtol=0)
    # Those that follow stand one behind the other; those that pass, beside.
    axis = (one.place - other.place)[:, 3]
    along = (axis * way).sum(1).abs() / axis.norm(dim=1) / way.norm(dim=1)
    assert along[follow].min() > 0.999 and along[passing].max() < 1e-3


def test_one_of_two_objects_says_nothing_and_neither_does_the_middle():
    motion = drawn(task="relation")
    one, other = motion.objects
    distance = (one.place - other.place)[:, 3].norm(dim=-1)
    for kind in range(4):
        mine = motion.labels == kind
        for thing in (one, other):
            assert_uniform_angles((thing.place[:, -1] - thing.place[:, 0])[mine])
        spread = distance.std() / math.sqrt(int(mine.sum()))
        assert abs(distance[mine].mean() - distance.mean()) < 4 * spread


def test_the_camera_carries_everything_and_says_nothing_about_the_class():
    motion = drawn(task="object", camera="pan", distractors=2)
    carried = motion.camera[:, -1] - motion.camera[:, 0]
    for thing in motion.objects[:2]:
        torch.testing.assert_close(thing.place[:, -1] - thing.place[:, 0], carried)
        assert not thing.moves.any()
    own = motion.objects[2].place - motion.camera  # against the background
    turned = angles(own[:, -1] - own[:, 0]) / (math.pi / 4)
    assert ((turned.round() % 8) == motion.labels).all()
    for kind in range(8):
        assert_uniform_angles(carried[motion.labels == kind])


def test_a_place_is_uniform_in_every_frame_whatever_the_direction():
    motion = drawn(task="object")
    first = (motion.objects[0].place[:, 0] + 0.5) % 1
    for kind in range(8):
        mine = first[motion.labels == kind]
        assert (mine.mean(0) - 0.5).abs().max() < 4 * math.sqrt(1 / 12 / len(mine))


def test_a_digit_moves_anywhere_and_stays_upright():
    motion = drawn(task="digit")
    (digit,) = motion.objects
    assert digit.angle.abs().max() < 0.3
    way = digit.place[:, -1] - digit.place[:, 0]
    for kind in range(len(CLASSES["digit"])):
        assert_uniform_angles(way[motion.labels == kind])


def test_sizes_of_what_turns_rests_and_grows_are_alike():
    """Over all frames of all clips: how many of each class are below nine sizes, against all."""
    motion = drawn(task="spin")
    size = motion.objects[0].size
    assert size.min() < 0.7 and size.max() > 1.4
    limits = size.quantile(torch.linspace(0.1, 0.9, 9))
    below = (size[..., None] < limits).float().mean(1)  # (B, 9)
    for kind in range(5):
        assert (below[motion.labels == kind].mean(0) - below.mean(0)).abs().max() < 0.06
