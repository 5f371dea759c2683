"""Digits of scikit-learn as objects."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from tats_fast.config import ConfigError
from tats_fast.generated import SceneConfig, Scenes
from tats_fast.generated.digits import load_digits


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"generated\.task=digit: .* pip install scikit-learn"):
        Scenes(SceneConfig(task="digit"), 2, 32, 0)


def test_the_halves_are_those_of_the_package_and_share_nothing():
    from sklearn import datasets

    whole = torch.from_numpy(datasets.load_digits().target).bincount()
    one, other = load_digits(0), load_digits(1)
    assert torch.equal(one.counts + other.counts, whole)
    assert not any((one.alpha == alpha).flatten(1).all(1).any() for alpha in other.alpha[::20])


def test_a_picked_digit_is_of_its_class():
    digits = load_digits(0)
    labels = torch.arange(10).repeat(20)
    picked = digits.pick(labels, torch.rand(200))
    of_class = torch.arange(10).repeat_interleave(digits.counts)
    assert torch.equal(of_class[picked], labels)
    assert len(picked.unique()) > 100
    last = digits.pick(torch.tensor([9]), torch.tensor([1 - 2**-24]))
    assert last.item() == len(digits.alpha) - 1


def test_what_moves_in_a_clip_is_the_digit_of_its_label():
    """The nearest of the *other* half's digits, upright and in the middle."""
    batch = Scenes(SceneConfig(task="digit", area=0.1, distractors=0), 3, 64, 0).batch(200, 0)
    masks = batch.moving[:, 1].float()
    line = torch.linspace(-1, 1, 64)
    weight = masks / masks.sum((1, 2), keepdim=True)
    middle = torch.stack([weight.sum(1) @ line, weight.sum(2) @ line], 1)
    spread = (weight.sum(2) @ line.square() - middle[:, 1].square()).sqrt()  # of its height
    other = load_digits(1)
    small = torch.linspace(-1, 1, 32)
    share = other.alpha / other.alpha.sum((1, 2), keepdim=True)
    shift = torch.stack([share.sum(1) @ small, share.sum(2) @ small], 1)
    height = (share.sum(2) @ small.square() - shift[:, 1].square()).sqrt()
    grid = torch.stack(torch.meshgrid(small, small, indexing="xy"), -1)[None] * 2

    def cut(images, centre, size):
        places = grid * size[:, None, None, None] + centre[:, None, None]
        return F.grid_sample(images[:, None], places, align_corners=True)[:, 0].flatten(1)

    distance = torch.cdist(cut(masks, middle, spread), cut(other.alpha, shift, height))
    guess = torch.arange(10).repeat_interleave(other.counts)[distance.argmin(1)]
    assert (guess == batch.labels).float().mean() > 0.9


def test_an_even_and_an_odd_seed_show_different_halves():
    train, test, again = (Scenes(SceneConfig(task="digit"), 2, 32, seed) for seed in (0, 1, 2))
    assert torch.equal(train._digits.alpha, load_digits(0).alpha)
    assert torch.equal(test._digits.alpha, load_digits(1).alpha)
    assert torch.equal(again._digits.alpha, train._digits.alpha)
