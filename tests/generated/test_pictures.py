"""Textures from the pictures that installed packages bring along."""

from __future__ import annotations

import pytest
import torch

from tats_fast.config import ConfigError
from tats_fast.generated import SceneConfig, Scenes, pictures
from tats_fast.generated.textures import noise_atlas


def test_matplotlib_which_is_always_here_brings_a_picture():
    assert "grace_hopper.jpg" in {path.name for path in pictures.installed_pictures()}


def test_without_pictures_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(pictures, "FILES", {"no_such_package": ("data", ("a.png",))})
    with pytest.raises(ConfigError, match=r"generated\.textures: .* pip install scikit-learn"):
        Scenes(SceneConfig(textures="images"), 2, 32, 0)
    Scenes(SceneConfig(textures="noise"), 2, 32, 0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_pictures_cover_their_share_and_noise_the_rest(share):
    generator = torch.Generator().manual_seed(0)
    noise = noise_atlas(512, generator)
    atlas = noise.clone()
    pictures.lay_pictures(atlas, share, generator)
    tiles = (atlas - noise).unfold(1, 128, 128).unfold(2, 128, 128)
    covered = tiles.abs().amax((0, 3, 4)) > 0
    assert 0.2 < covered.float().mean() < 0.8 if share < 1 else covered.all()
    # Contrast does not tell a picture from noise.
    assert atlas.std().item() == pytest.approx(1, abs=0.1)


def test_pieces_of_another_seed_are_others():
    one, other = (Scenes(SceneConfig(textures="images"), 2, 32, seed) for seed in (0, 1))
    again = Scenes(SceneConfig(textures="images"), 2, 32, 0)
    assert torch.equal(one.batch(2, 0).clips, again.batch(2, 0).clips)
    assert not torch.equal(one.batch(2, 0).clips, other.batch(2, 0).clips)
