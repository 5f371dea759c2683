"""Pictures and pages: exact un-normalisation, fair comparisons, a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_video
from pages import NAMES, Parsed, models, noise_clips, save_checkpoint, tiny

from tats_fast import kernels
from tats_fast.config import ConfigError
from tats_fast.data.video import DecodeError, load_clip
from tats_fast.masking import visible_tokens
from tats_fast.models.patchify import motion_energy, patchify, unpatchify
from tats_fast.report import page as page_module
from tats_fast.report import visualize
from tats_fast.report.analysis import SAMPLER, analyze, fill_masked, unnormalize
from tats_fast.report.content import charts, headlines
from tats_fast.report.curves import Chart, chart_html, nice_ticks, thin
from tats_fast.report.figures import clip_figure, summary_figure
from tats_fast.report.images import data_uris
from tats_fast.report.pictures import (
    ERROR_TOP,
    MAGMA,
    VIRIDIS,
    colours,
    error_map,
    fit,
    heat_overlay,
    mask_sheet,
    masked_frames,
    strip,
)

# --- analysis


def test_unnormalize_inverts_the_target_exactly():
    patches = patchify(noise_clips(), 2, 8)
    patches[0, 3] = 77  # a flat patch has no contrast: its target is zero
    back = unnormalize(kernels.normalized_patches(patches), patches)
    torch.testing.assert_close(back, patches.float() / 255, atol=2e-6, rtol=0)
    masked = torch.arange(patches.shape[1]).expand(len(patches), -1)
    assert torch.equal(fill_masked(patches, kernels.normalized_patches(patches), masked), patches)


def test_perfect_predictions_give_the_clip_back_with_zero_error():
    config, clips = tiny(), noise_clips(1)
    mae, sampler = models(config)
    target = kernels.normalized_patches(patchify(clips, 2, 8))
    mae.decode = lambda latent, split: kernels.token_gather(target, split.masked)
    (result,) = analyze(config, mae, sampler, clips, draws=1)
    for draw in result.draws.values():
        assert np.array_equal(draw.reconstruction, clips[0].numpy())
        assert draw.loss < 1e-10


def test_reconstruction_keeps_visible_tokens_and_repaints_the_others():
    config, clips = tiny(), noise_clips(1)
    (result,) = analyze(config, *models(config), clips, draws=1)
    source = patchify(clips, 2, 8)[0]
    for draw in result.draws.values():
        shown = patchify(torch.from_numpy(draw.reconstruction)[None], 2, 8)[0]
        same = (shown == source).all(dim=-1).numpy()
        assert set(np.flatnonzero(same)) == set(draw.visible.tolist())


def test_errors_belong_to_their_tokens_and_are_nan_where_visible():
    config, clips = tiny(), noise_clips(1)
    mae, sampler = models(config)
    target = kernels.normalized_patches(patchify(clips, 2, 8))
    offset = torch.linspace(0, 1, 128)[None, :, None].expand_as(target)
    mae.decode = lambda latent, split: kernels.token_gather(target + offset, split.masked)
    (result,) = analyze(config, mae, sampler, clips, draws=1)
    expected = np.linspace(0, 1, 128) ** 2
    for draw in result.draws.values():
        hidden = ~np.isnan(draw.error)
        assert set(np.flatnonzero(~hidden)) == set(draw.visible.tolist())
        np.testing.assert_allclose(draw.error[hidden], expected[hidden], atol=1e-5)
        assert draw.loss == pytest.approx(expected[hidden].mean(), abs=1e-5)


def test_all_strategies_show_equally_many_tokens():
    config = tiny()
    for result in analyze(config, *models(config), noise_clips(), draws=1):
        assert tuple(result.draws) == NAMES
        assert {len(draw.visible) for draw in result.draws.values()} == {12}
        assert all(len(set(draw.visible.tolist())) == 12 for draw in result.draws.values())
    config = tiny("tube")  # 8 frames x 1 place: fewer than the 12 that the others could show
    for result in analyze(config, *models(config), noise_clips(), draws=1):
        assert tuple(result.draws) == ("tube", "random", "motion")
        assert {len(draw.visible) for draw in result.draws.values()} == {8}


def test_analysis_is_deterministic_and_leaves_the_global_generator_alone():
    config, clips = tiny(), noise_clips()
    mae, sampler = models(config)
    before = torch.get_rng_state()
    one, same = (analyze(config, mae, sampler, clips, seed=3, draws=2) for _ in range(2))
    mask_sheet(config, mae, sampler, clips)
    assert torch.equal(torch.get_rng_state(), before)
    other = analyze(config, mae, sampler, clips, seed=4, draws=2)
    for a, b in zip(one, same, strict=True):
        for name in NAMES:
            for key, value in dataclasses.asdict(a.draws[name]).items():
                assert np.array_equal(value, getattr(b.draws[name], key), equal_nan=True)
    assert not np.array_equal(one[0].draws["random"].visible, other[0].draws["random"].visible)
    assert not np.array_equal(one[0].draws["random"].visible, one[1].draws["random"].visible)


def test_motion_lift_and_heat_mean_what_they_say():
    config, clips = tiny(), noise_clips(1)
    (result,) = analyze(config, *models(config), clips, draws=4)
    assert result.heat.mean() == pytest.approx(1, abs=1e-4) and result.heat.std() > 0.05
    energy = motion_energy(patchify(clips, 2, 8), 2)[0].numpy()
    np.testing.assert_allclose(result.motion, energy / energy.mean(), rtol=1e-4)
    for draw in result.draws.values():
        expected = energy[draw.visible].mean() / energy.mean()
        assert draw.motion_lift == pytest.approx(expected, rel=1e-4)
    # Half of the tokens stand still and the other half move alike.
    assert result.draws["motion"].mean_motion_lift == pytest.approx(2, abs=0.05)
    assert abs(result.draws["random"].mean_motion_lift - 1) < 0.3


def test_still_clip_has_no_motion_and_no_nan():
    config = tiny()
    clips = noise_clips(1)[:, :1].expand(1, 16, 32, 32, 3).contiguous()
    (result,) = analyze(config, *models(config), clips, draws=1)
    assert not result.motion.any()
    assert all(draw.motion_lift == 1 for draw in result.draws.values())


@pytest.mark.parametrize(
    ("clips", "arguments", "message"),
    [
        (noise_clips().float(), {}, "uint8"),
        (noise_clips()[:, :8], {}, "16, 32, 32, 3"),
        (noise_clips(), {"draws": 0}, "draws"),
    ],
)
def test_wrong_input_is_named(clips, arguments, message):
    config = tiny()
    with pytest.raises(ValueError, match=message):
        analyze(config, *models(config), clips, **arguments)


def test_sampler_draws_need_a_sampler():
    config = tiny("random")
    with pytest.raises(ValueError, match="needs a sampler"):
        analyze(config, *models(config), noise_clips(), strategies=(SAMPLER,))


# --- pictures


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
    ends = {0: VIRIDIS[-1], 1: VIRIDIS[0], 2: VIRIDIS[0], 3: VIRIDIS[4]}
    ends[16] = VIRIDIS[6]  # twice chance lies halfway to four times
    for token, colour in ends.items():
        pixel = picture[token // 16, 0, 8 * (token % 16)]
        assert np.abs(pixel - 0.72 * np.array(colour)).max() <= 1


def test_error_map_marks_visible_tokens_grey():
    error = np.full(128, ERROR_TOP, np.float32)
    error[1] = np.nan
    picture = error_map(error, tiny().model)
    assert picture[0, 0, 8].tolist() == [128] * 3
    assert picture[0, 0, 0].tolist() == [252, 253, 191]


@pytest.mark.parametrize(("name", "anchors"), [("viridis", VIRIDIS), ("magma", MAGMA)])
def test_colours_agree_with_matplotlib(name, anchors):
    matplotlib = pytest.importorskip("matplotlib")
    for count, bound in ((9, 1.5), (101, 20)):  # at the anchors, and between them
        positions = np.linspace(0, 1, count)
        truth = 255 * matplotlib.colormaps[name](positions)[:, :3]
        assert np.abs(colours(positions, anchors) - truth).max() < bound


@pytest.mark.parametrize(("side", "wide"), [(32, 96), (64, 128), (96, 96), (224, 112), (97, 97)])
def test_fit_scales_by_whole_numbers(side, wide):
    pictures = np.arange(side, dtype=np.uint8)[None, :, None, None].repeat(side, 2).repeat(3, 3)
    fitted = fit(pictures)
    assert fitted.shape == (1, wide, wide, 3) and fitted.dtype == np.uint8
    if wide > side:
        assert np.array_equal(fitted[:, :: wide // side, :: wide // side], pictures)
    assert strip(fitted.repeat(3, 0), gutter=2).shape == (wide, 3 * wide + 4, 3)


@pytest.mark.parametrize(("strategy", "rows"), [("tats", 3), ("random", 2), ("tube", 2)])
def test_mask_sheet(strategy, rows):
    config = tiny(strategy)
    mae, sampler = models(config)
    sheet = mask_sheet(config, mae, sampler, noise_clips())
    assert sheet.dtype == np.uint8
    gaps = 2 * (rows - 1) * 2 + 12
    assert sheet.shape == (2 * rows * 64 + gaps, 8 * 64 + 7 * 2, 3)
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


def test_figures_are_pictures_of_one_row_per_clip():
    config = tiny()
    analyses = analyze(config, *models(config), noise_clips(3), draws=1)
    one, two = (summary_figure(config, analyses, limit=n) for n in (1, 2))
    assert one.dtype == two.dtype == np.uint8 and two.shape[1] == one.shape[1]
    assert two.shape[0] == one.shape[0] + 128 + 4
    assert clip_figure(config, analyses[0], 4.0).shape[2] == 3
    with pytest.raises(ValueError, match="at least one"):
        summary_figure(config, [])


def test_data_uris_keep_to_the_budget():
    rng = np.random.default_rng(0)
    noisy = [rng.integers(0, 256, (64, 256, 3), dtype=np.uint8) for _ in range(4)]
    assert len(data_uris(noisy)) == 4
    full = sum(map(len, data_uris(noisy)))
    small = sum(map(len, data_uris(noisy, budget=full // 3)))
    assert small * 3 / 4 <= full // 3 < full


# --- curves and page


def metric_rows() -> list[dict]:
    rows = [{"step": 10, "loss_recon": 1.25, "strategy": "random (warm-up)", "entropy_frac": None}]
    rows += [
        {"step": s, "loss_recon": 1.0, "lr": 1e-4, "entropy_frac": 0.9, "clips_per_s": 7.0}
        for s in (20, 30)
    ]
    return rows


EVALUATIONS = [
    {"step": 0, "loss_recon_random": 1.6, "entropy_frac": 0.9991, "motion_lift_random": 1.011},
    {"step": 15, "loss_recon_random": 1.3},
    {
        **{
            "step": 30,
            "loss_recon_random": 1.2,
            "entropy_frac": 0.8765,
            "motion_lift_random": 0.987,
        },
        **{"motion_lift_sampler": 1.543, "motion_lift_motion": 3.21},
    },
]


def test_chart_draws_every_line_within_its_frame_and_skips_single_points():
    lines = {"up": [(0, 1e-5), (10, 2e-5)], "lone": [(0, 3)], "<down>": [(0, 2e-5), (5, 1e-5)]}
    text = chart_html(Chart(title="a & b", caption="c", lines=lines, reference=0.0))
    paths = re.findall(r'class="line[^>]* d="M([^"]+)"', text)
    assert len(paths) == 2
    for path in paths:
        points = [tuple(map(float, pair.split())) for pair in path.split("L")]
        assert all(0 <= x <= 340 and 0 <= y <= 190 for x, y in points)
    assert "a &amp; b" in text and "&lt;down&gt;" in text and "<down>" not in text
    assert chart_html(Chart(title="t", caption="", lines={"lone": [(0, 3)]})) == ""
    flat = chart_html(Chart(title="t", caption="", lines={"flat": [(0, 3), (1, 3)]}))
    assert "nan" not in flat


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.13, 0.88, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 4, [0, 1, 2, 3, 4]),
        (0, 1e-4, [0, 2.5e-5, 5e-5, 7.5e-5, 1e-4]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_thinning_keeps_means():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert all(y == pytest.approx(0.5) for _, y in thinned)


def test_headlines_compare_first_and_last_evaluation():
    found = {number.name: number for number in headlines(EVALUATIONS)}
    assert (found["Held-out error"].first, found["Held-out error"].last) == (1.6, 1.2)
    assert found["Held-out error"].steps == (0, 30)
    assert found["Motion lift, sampler"].first == found["Motion lift, sampler"].last == 1.543
    assert headlines([]) == []
    assert "Mask ratio" not in {chart.title for chart in charts(metric_rows(), EVALUATIONS)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("<i>&lt;'")
    return [write_video(folder / f"clip{i}.mp4", 20 + i) for i in range(2)]


def test_report_of_a_run(tmp_path, videos, caplog):
    run = tmp_path / "runs" / "tiny"
    checkpoint = save_checkpoint(tiny(), run / "checkpoints" / "step_30")
    later = {"step": 40, "loss_recon": 9.0}
    lines = [json.dumps(row) for row in [*metric_rows(), later]]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5')
    late = {**EVALUATIONS[-1], "step": 40, "loss_recon_random": 9.0}
    (run / "eval.jsonl").write_text("\n".join(map(json.dumps, [*EVALUATIONS, late])) + "\n")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with caplog.at_level(logging.WARNING, logger="tats_fast"):
        index = visualize.write_report(
            checkpoint, [videos[0], bad, videos[1]], tmp_path / "deep" / "out"
        )
    assert "bad.mp4" in caplog.text

    made = sorted(path.name for path in index.parent.iterdir())
    assert made == ["clip_00.png", "clip_01.png", "index.html", "summary.png"]
    source = index.read_text(encoding="utf-8")
    parsed = Parsed(source)
    assert len(source) < 6e6
    assert parsed.references and all(ref.startswith("data:") for ref in parsed.references)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", source)
    images = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert len(images) == 2 * (1 + 2 + 3 * len(NAMES))
    assert all(attrs["alt"] for attrs in images)
    assert any(attrs.get("name") == "viewport" for tag, attrs in parsed.tags if tag == "meta")
    for text in (
        "learned sampler",
        "random draw",
        "motion draw",
        "bad.mp4",
        "not a video container",
    ):
        assert text in parsed.text
    for number in ("1.600", "1.200", "-25.0%", "0.999", "0.876", "1.543", "3.210", "step 30"):
        assert number in parsed.text, number
    # Nothing of what the run did after this checkpoint.
    assert "9.000" not in parsed.text and "step 40" not in parsed.text
    for title in ("Training error", "Learning rate", "Speed", "Motion lift", "Until step 10"):
        assert title in parsed.text
    assert all("<i>&lt;'" in attrs["alt"] for attrs in images)
    assert "<i>&lt;'" in parsed.text and "image_size: 32" in parsed.text
    again = visualize.write_report(run, videos, tmp_path / "again")
    picture = (index.parent / "clip_00.png").read_bytes()
    assert picture == (again.parent / "clip_00.png").read_bytes()


def test_report_without_sampler_and_without_a_run(tmp_path, videos):
    checkpoint = save_checkpoint(tiny("random"), tmp_path / "loose")
    index = visualize.write_report(checkpoint, [videos[0].parent], tmp_path / "out")
    parsed = Parsed(index.read_text(encoding="utf-8"))
    assert "random draw" in parsed.text and "motion draw" in parsed.text
    assert "learned sampler" not in parsed.text
    assert "Headline" not in parsed.text and "Curves" not in parsed.text
    assert sum(tag == "img" for tag, _ in parsed.tags) == 2 * (1 + 1 + 3 * 2)


def test_report_shows_the_same_clip_as_the_loader(videos):
    config = tiny()
    clips, failures, untried = visualize._decode(config, [str(videos[0])])
    assert np.array_equal(clips[0][1], load_clip(str(videos[0]), 16, 1, 32))
    assert failures == [] and untried == 0


def test_only_so_many_clips(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(visualize, "MAX_CLIPS", 1)
    checkpoint = save_checkpoint(tiny("random"), tmp_path / "loose")
    index = visualize.write_report(checkpoint, [*videos, *videos], tmp_path / "out")
    assert "3 more videos were given" in Parsed(index.read_text(encoding="utf-8")).text


def test_no_readable_video_is_one_line(tmp_path):
    checkpoint = save_checkpoint(tiny("random"), tmp_path / "loose")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(DecodeError) as caught:
        visualize.write_report(checkpoint, [bad, tmp_path / "gone.mp4"], tmp_path / "out")
    message = str(caught.value)
    assert "bad.mp4" in message and "none of the 2 videos" in message and "\n" not in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--video"):
        visualize.write_report(checkpoint, [], tmp_path / "out")


def test_videos_may_be_files_lists_and_folders(tmp_path, videos):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{video} 3\n" for video in videos))
    unnamed = tmp_path / "video"  # no ending: its zero bytes tell it from a list
    unnamed.write_bytes(videos[0].read_bytes())
    found = visualize.expand_videos([videos[1], listed, videos[0].parent, unnamed, "gone.mp4"])
    both = [str(video) for video in videos]
    assert found == [str(videos[1]), *both, *both, str(unnamed), "gone.mp4"]


def test_the_page_states_the_scale_it_used():
    config = tiny()
    mae, sampler = models(config)
    (result,) = analyze(config, mae, sampler, noise_clips(1), draws=1)
    for reach, top in ((1.0, "2×"), (7.0, "8×"), (500.0, "16×")):
        heat = np.full_like(result.heat, reach)
        clip = dataclasses.replace(result, heat=heat)
        report = page_module.Report(config=config, checkpoint="x", clips=[("c", clip)])
        assert top in Parsed(page_module.render_page(report)).text


def test_unpatchify_order_matches_the_pictures():
    """A token's square in the pictures is where ``unpatchify`` puts its pixels."""
    model = tiny().model
    patches = torch.zeros(1, 128, model.patch_dim, dtype=torch.uint8)
    patches[0, 22] = 255
    clip = unpatchify(patches, 2, 8, 32)[0].numpy()
    picture = masked_frames(clip, np.array([22]), model)
    assert np.array_equal(picture == 255, clip[::2] == 255) and (clip == 255).any()
