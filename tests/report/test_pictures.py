"""Masks, heat maps, errors and their composites show what they should, pixel for pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from pages import models, noise_clips, tiny
from PIL import Image

from tats_fast.masking import visible_tokens
from tats_fast.models.patchify import unpatchify
from tats_fast.report.analysis import analyze
from tats_fast.report.figures import clip_figure, summary_figure
from tats_fast.report.markup import data_uris
from tats_fast.report.pictures import (
    ERROR_TOP,
    clip_rows,
    error_map,
    fit,
    heat_overlay,
    mask_strips,
    masked_frames,
    strip,
)


def test_masked_frames_show_visible_tokens_only():
    model, clip = tiny().model, noise_clips(1)[0].numpy()
    picture = masked_frames(clip, np.array([5]), model)  # frame 0, row 1, column 1
    assert picture.shape == (8, 32, 32, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture[0, 8:16, 8:16], clip[0, 8:16, 8:16])
    picture[0, 8:16, 8:16] = 0
    assert picture.max() <= 48 + 0.22 * 255 + 1


def test_heat_overlay_puts_chance_in_the_middle_of_the_scale():
    model = tiny().model
    black = np.zeros((16, 32, 32, 3), np.uint8)
    weight = np.ones(128, np.float32)
    weight[0], weight[1], weight[2], weight[16] = 4, 0.25, 0, 2
    picture = heat_overlay(black, weight, model, top=4)
    dark, middle, bright = (68, 1, 84), (33, 145, 140), (253, 231, 37)
    shown = {0: bright, 1: dark, 2: dark, 3: middle}
    shown[16] = (94, 201, 98)  # twice chance lies halfway to four times
    for token, colour in shown.items():
        pixel = picture[token // 16, 0, 8 * (token % 16)]
        assert np.abs(pixel - 0.72 * np.array(colour)).max() <= 1


def test_error_map_marks_visible_tokens_grey():
    error = np.full(128, ERROR_TOP, np.float32)
    error[1] = np.nan
    picture = error_map(error, tiny().model)
    assert picture[0, 0, 8].tolist() == [128] * 3
    assert picture[0, 0, 0].tolist() == [252, 253, 191]


@pytest.mark.parametrize(("side", "wide"), [(32, 96), (64, 128), (96, 96), (224, 112), (97, 97)])
def test_fit_scales_by_whole_numbers(side, wide):
    pictures = np.arange(side, dtype=np.uint8)[None, :, None, None].repeat(side, 2).repeat(3, 3)
    fitted = fit(pictures)
    assert fitted.shape == (1, wide, wide, 3) and fitted.dtype == np.uint8
    if wide > side:
        assert np.array_equal(fitted[:, :: wide // side, :: wide // side], pictures)
    assert strip(fitted.repeat(3, 0), gutter=2).shape == (wide, 3 * wide + 4, 3)


@pytest.mark.parametrize(
    ("strategy", "rows"), [("tats", 3), ("random", 2), ("tube", 2), ("everest", 2)]
)
def test_mask_strips(strategy, rows):
    config = tiny(strategy)
    mae, sampler = models(config)
    strips = mask_strips(config, mae, sampler, noise_clips())
    assert len(strips) == 2 and not np.array_equal(*strips)
    for sheet in strips:
        assert sheet.dtype == np.uint8
        assert sheet.shape == (rows * 64 + (rows - 1) * 2, 8 * 64 + 7 * 2, 3)
    sheet = strips[0]
    frames = sheet[:64, :64].reshape(32, 2, 32, 2, 3)[:, 0, :, 0]
    assert np.array_equal(frames, noise_clips()[0, 0].numpy())
    # The second row shows exactly the number of tokens that training shows.
    tokens = sheet[66:130].astype(int)
    cells = [tokens[:, 66 * f : 66 * f + 64] for f in range(8)]
    clip = noise_clips()[0, ::2].numpy().repeat(2, 1).repeat(2, 2)
    equal = [
        (cell == clip[f]).reshape(4, 16, 4, 16, 3).all((1, 3, 4)) for f, cell in enumerate(cells)
    ]
    assert np.sum(equal) == visible_tokens(strategy, config.model, 0.9)


def pixels(figure) -> np.ndarray:
    """A figure as its file shows it: (H, W, 3) uint8."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def test_summary_has_a_row_per_clip():
    config, clips = tiny(), noise_clips(3)
    analyses = analyze(config, *models(config), clips, draws=1)
    one, two = (pixels(summary_figure(config, analyses, limit=n)) for n in (1, 2))
    assert two.shape[1] == one.shape[1] and two.shape[0] == one.shape[0] + 128 + 4
    # The frame with the most motion, four times as large, at the left end of its row.
    for row in range(2):
        frame = analyses[row].motion.reshape(8, -1).sum(axis=1).argmax()
        left = two[two.shape[0] - 8 - 128 - 132 * (1 - row) :][:128, 8:136]
        assert np.array_equal(left[::4, ::4], clips[row, 2 * frame].numpy())
    with pytest.raises(ValueError, match="at least one"):
        summary_figure(config, [])


def test_a_still_clip_is_drawn_from_by_chance():
    config = tiny()
    still = noise_clips(1)[:, :1].expand(-1, 16, -1, -1, -1)
    (analysis,) = analyze(config, *models(config), still)
    rows = {(row.group, row.strategy): row.pictures for row in clip_rows(config, analysis, 4.0)}
    even = heat_overlay(still[0].numpy(), np.ones(128, np.float32), config.model, 4.0)
    assert np.array_equal(rows["probability", "motion"], even)


def test_clip_figure_has_every_row_and_its_name():
    config, clips = tiny(), noise_clips(1)
    (analysis,) = analyze(config, *models(config), clips, draws=1)
    figure = clip_figure(config, analysis, 4.0)
    picture, names = pixels(figure), [text.get_text() for text in figure.texts]
    rows = 1 + 2 + 3 * 3
    assert picture.shape == (16 + 100 * rows - 4, 16 + 132 + 8 * 100 - 4, 3)
    frames = picture[8:104, 140:-8]
    for number in range(8):
        frame = frames[::3, 100 * number :][:, :96:3]
        assert np.array_equal(frame, clips[0, 2 * number].numpy())
    assert len(names) == rows and names[0] == "frames"
    assert names[1:4] == [
        "sampler\nprobability\n1/4 to 4 × chance",
        "motion\nprobability\n1/4 to 4 × chance",
        "sampler\nvisible tokens",
    ]
    assert names[-1] == "motion\nerror, 0 to 1.5\n(grey: visible)"
    assert (picture[:, :8] == 255).all() and (picture[:, 8:140] < 128).any()


def test_data_uris_keep_to_the_budget():
    rng = np.random.default_rng(0)
    noisy = [rng.integers(0, 256, (64, 256, 3), dtype=np.uint8) for _ in range(4)]
    assert len(data_uris(noisy)) == 4
    full = sum(map(len, data_uris(noisy)))
    small = sum(map(len, data_uris(noisy, budget=full // 3)))
    assert small * 3 / 4 <= full // 3 < full


def test_unpatchify_order_matches_the_pictures():
    """A token's square in the pictures is where ``unpatchify`` puts its pixels."""
    model = tiny().model
    patches = torch.zeros(1, 128, model.patch_dim, dtype=torch.uint8)
    patches[0, 22] = 255
    clip = unpatchify(patches, 2, 8, 32)[0].numpy()
    picture = masked_frames(clip, np.array([22]), model)
    assert np.array_equal(picture == 255, clip[::2] == 255) and (clip == 255).any()
