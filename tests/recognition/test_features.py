"""Features of recognition: the encoder's, computed once, honest about bad files."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from data_files import write_video
from models_exchanged import randomize
from project import TINY_MODEL

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.data.lists import Video
from tats_fast.data.views import decode_views, dense_views, side_crops
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.recognition import decoding as module
from tats_fast.recognition.features import (
    FeatureSettings,
    encoder_hash,
    pool_tokens,
    video_features,
)

SETTINGS = FeatureSettings(stride=2, grid=4, batch_size=2, workers=1)


@pytest.fixture
def encoder() -> VideoEncoder:
    return randomize(VideoEncoder(ModelConfig(**TINY_MODEL)))


@pytest.fixture
def videos(tmp_path) -> list[Video]:
    counts = (12, 30, 5)  # one shorter than a clip
    return [Video(str(write_video(tmp_path / f"{n}.mp4", n)), n) for n in counts]


def by_hand(encoder: VideoEncoder, path: str) -> torch.Tensor:
    """(N, C) of the middle clip."""
    views = decode_views(path, lambda total: dense_views(total, 8, 2, 1), side_crops(1), 32)
    normalised = (views[0, 0] / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    video = torch.tensor(normalised, dtype=torch.float32).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        return encoder.forward_features(video)[0]


def test_features_are_the_encoders(encoder, videos, tmp_path):
    found = video_features(encoder.train(), videos, SETTINGS, tmp_path / "cache")
    assert encoder.training, "the encoder is left as it was"
    assert found.mean.shape == (3, 32) and found.mean.dtype == torch.float32
    assert found.indices.tolist() == [0, 1, 2] and found.bad == []
    for row, video in enumerate(videos):
        expected = by_hand(encoder, video.path)
        torch.testing.assert_close(found.mean[row], expected.mean(0), rtol=1e-4, atol=1e-5)
        # Half precision: 11 bits.
        tokens = found.tokens[torch.tensor([row])][0].float()
        torch.testing.assert_close(tokens, expected, rtol=2e-3, atol=1e-3)


DAMAGE = {
    "index is empty": ("index.json", lambda raw: b""),
    "index is cut off": ("index.json", lambda raw: raw[:9]),
    "index is a list": ("index.json", lambda raw: b"[]"),
    "index lacks a key": ("index.json", lambda raw: b'{"lost": []}'),
    "index names no list": ("index.json", lambda raw: b'{"lost": [], "bad": [1]}'),
    "index counts too far": ("index.json", lambda raw: b'{"lost": [], "bad": [[9, "x"]]}'),
    "index is a picture": ("index.json", lambda raw: b"\xff\xd8"),
    "mean is empty": ("mean.npy", lambda raw: b""),
    "mean is cut off": ("mean.npy", lambda raw: raw[:-8]),
    "mean is of another list": ("mean.npy", lambda raw: npy(np.zeros((2, 32), np.float32))),
    "mean is code": ("mean.npy", lambda raw: npy(np.array([{}]))),
    "tokens are cut off": ("tokens.npy", lambda raw: raw[:-8]),
    "tokens are of another grid": ("tokens.npy", lambda raw: npy(np.zeros((3, 1, 32), np.float16))),
    "tokens are gone": ("tokens.npy", None),
}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(encoder, videos, tmp_path, damage, caplog):
    first = video_features(encoder, videos, SETTINGS, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    name, change = DAMAGE[damage]
    raw = (folder / name).read_bytes()
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_bytes(change(raw))
    again = video_features(encoder, videos, SETTINGS, tmp_path / "cache")
    assert torch.equal(first.mean, again.mean)
    every = torch.arange(3)
    assert torch.equal(first.tokens[every], again.tokens[every])
    assert "damaged" in caplog.text and str(folder) in caplog.text


def test_second_call_decodes_nothing(encoder, videos, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = video_features(encoder, videos, SETTINGS, cache)
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []

    def refuse(*_args, **_kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr(module, "Workers", refuse)
    relabelled = [Video(video.path, "x") for video in videos]
    second = video_features(encoder, relabelled, SETTINGS, cache)
    assert torch.equal(first.mean, second.mean)

    # Everything that the features depend on is part of the key.
    with pytest.raises(AssertionError, match="decoded again"):
        video_features(encoder, videos[::-1], SETTINGS, cache)
    with pytest.raises(AssertionError, match="decoded again"):
        video_features(encoder, videos, FeatureSettings(stride=3, grid=4), cache)
    os.utime(videos[0].path, (1, 1))
    with pytest.raises(AssertionError, match="decoded again"):
        video_features(encoder, videos, SETTINGS, cache)
    os.utime(videos[0].path)
    before = encoder_hash(encoder)
    encoder.blocks[1].norm1.bias.data[0] += 1e-3
    assert encoder_hash(encoder) != before


def test_unreadable_files_are_named_and_left_out(encoder, videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    listed = [videos[0], Video(str(broken)), videos[1], Video(str(tmp_path / "missing.mp4"))]
    for _ in range(2):  # computed, then from the cache
        found = video_features(encoder, listed, SETTINGS, tmp_path / "cache")
        assert found.indices.tolist() == [0, 2]
        assert [path for path, _ in found.bad] == [listed[1].path, listed[3].path]
        assert all(reason for _, reason in found.bad)
        expected = torch.stack([by_hand(encoder, videos[n].path).mean(0) for n in (0, 1)])
        torch.testing.assert_close(found.mean, expected, rtol=1e-4, atol=1e-5)
        assert len(found.tokens) == 2


def test_lost_videos_are_tried_again(encoder, videos, tmp_path, monkeypatch):
    dies = videos[1].path

    def decode(path, *args):
        if path == dies:
            os._exit(3)
        return decode_views(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode_views", decode)
        found = video_features(encoder, videos, SETTINGS, tmp_path / "cache")
    assert found.indices.tolist() == [0, 2]
    assert found.bad == [(dies, "the process reading it died (exit 3)")]
    again = video_features(encoder, videos, SETTINGS, tmp_path / "cache")
    assert again.bad == [] and len(again.mean) == 3


def test_tokens_are_averaged_over_squares():
    # Width 1, two token-frames of 4 x 4: place (row, column) of frame f holds 100 f + 10 r + c.
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    frame = 10 * rows + columns
    tokens = torch.stack([frame, frame + 100]).reshape(1, 32, 1)
    pooled = pool_tokens(tokens, 2, 2).flatten().tolist()
    assert pooled == [5.5, 7.5, 25.5, 27.5, 105.5, 107.5, 125.5, 127.5]
    assert torch.equal(pool_tokens(tokens, 2, 4), tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [("stride", -1), ("grid", 0), ("batch_size", 0), ("workers", 0), ("timeout", 0.0)],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"^{field}={value}: must be"):
        FeatureSettings(**{field: value})
