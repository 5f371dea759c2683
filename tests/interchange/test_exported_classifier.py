"""What an exported classifier comes with: commands, model card, the same answers to a video."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from classifiers_exchanged import (
    CLASSES,
    from_transformers,
    logits,
    make_classifier,
    write_fine_tuned,
)
from models_exchanged import SIZES, model_tree, pil_processor, random_clip

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError, FinetuneConfig
from tats_fast.data.clip import window_start
from tats_fast.data.video import load_clip
from tats_fast.interchange import export_hugging_face, read_weights
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def run(tmp_path):
    return write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")))


def test_command_line(run, tmp_path, capsys):
    exported, imported = str(tmp_path / "exported"), str(tmp_path / "imported.safetensors")
    assert main(["export", "--checkpoint", str(run), "--to", "huggingface", "--out", exported]) == 0
    assert main(["import", "--from", exported, "--out", imported]) == 0
    assert "encoder and classifier of 5 classes" in capsys.readouterr().out
    _, video = random_clip(SIZES["plain"])
    expected = logits(tats_fast.load_classifier(run), video)
    assert torch.equal(logits(tats_fast.load_classifier(imported), video), expected)
    folder = str(tmp_path / "folder")
    assert main(["import", "--from", exported, "--out", folder]) == 2
    assert "no decoder for a checkpoint folder" in capsys.readouterr().err


def test_visualize_needs_an_autoencoder(run, demo_clips, tmp_path, capsys):
    command = ["visualize", "--checkpoint", str(run), "--video", str(demo_clips), "--out"]
    assert main([*command, str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err
    assert "needs an autoencoder" in error and error.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_model_card_of_a_classifier(tmp_path):
    secret = "secret_folder/encoder"
    config = {
        "init_from": secret,
        "optim": dataclasses.replace(FinetuneConfig().optim, layer_decay=0.63),
        "data": dataclasses.replace(FinetuneConfig().data, train=f"{secret}.csv", stride=2),
    }
    run = write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")), **config)
    text = (export_hugging_face(read_weights(run), tmp_path / "out") / "README.md").read_text()
    for part in (
        *("- video-classification", "trained by TATS-Fast", "| steps done | 100 |"),
        *("| optim.layer_decay | 0.63 |", "| started from | a pretrained encoder |"),
        *("\n1 Putting [something] on a table\n", "numbers n, n + 2, n + 4, ...", "TODO"),
    ):
        assert part in text
    assert "secret" not in text and str(tmp_path) not in text and "no classifier" not in text
    assert "the norm before the classifier" not in text


def test_names_of_any_bytes_and_the_folder_one_is_in(tmp_path, monkeypatch):
    """A list in Latin-1 gives names that are no UTF-8."""
    run = write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")))
    weights = read_weights(run)
    odd = dataclasses.replace(weights, classes=("caf\udce9", *weights.classes[1:]))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    export_hugging_face(odd, Path("."))
    assert "\n0 caf\ufffd\n" in Path("README.md").read_text(encoding="utf-8")
    assert read_weights(tmp_path / "out").classes == odd.classes
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        export_hugging_face(odd, Path("."))


def test_example_on_the_model_card_runs(run, tmp_path, capsys):
    exported = export_hugging_face(read_weights(run), tmp_path / "exported")
    code = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    frames = [np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8) for i in range(4)]
    exec(code.replace('"PATH"', repr(str(exported))), {"frames": frames})
    assert capsys.readouterr().out.strip() in CLASSES


def test_a_checkpoint_without_its_configuration(run, tmp_path):
    """The classifier's file says all; what is lost is how it was trained."""
    moved = tmp_path / "moved.safetensors"
    (run / "checkpoints" / "step_000100" / "model.safetensors").rename(moved)
    weights = read_weights(moved)
    assert weights.run is None and weights.classes == CLASSES and weights.step is None
    card = (export_hugging_face(weights, tmp_path / "out") / "README.md").read_text()
    assert "TODO: which ones" in card


# The real thing: one video, decoded by us and by whoever uses the export.

# swscale's bits for bilinear, chroma at full resolution and exact rounding (libswscale/swscale.h),
# which every frame here is decoded with. PyAV's own choice is a quick path with darker colours.
EXACT = 0x2 | 0x2000 | 0x4000 | 0x40000


@pytest.fixture
def both_ways(demo_clips, tmp_path):
    """For a model of ``size`` pixels: our classifier and its export, and one video (170 x 128) as
    (1, 3, T, S, S), prepared by us and by Transformers."""

    def make(size: int):
        tree = {**model_tree("plain"), "image_size": size, "patch_size": 16, "num_frames": 8}
        run = write_fine_tuned(tmp_path / "run", make_classifier(tree))
        out = export_hugging_face(read_weights(run), tmp_path / "exported")
        path = str(demo_clips / "hmdb51_cartwheel.mp4")
        clip = torch.from_numpy(load_clip(path, 8, 4, size))
        ours = (clip / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        with av.open(path) as container:
            frames = list(container.decode(video=0))
        start = window_start(len(frames), span=29, window=0.5)
        pictures = [
            frame.to_ndarray(format="rgb24", interpolation=EXACT)
            for frame in frames[start : start + 29 : 4]
        ]
        processor = pil_processor(out)
        theirs = processor(pictures, return_tensors="pt").pixel_values.transpose(1, 2)
        return (
            tats_fast.load_classifier(run),
            from_transformers(out),
            ours.permute(3, 0, 1, 2)[None],
            theirs,
        )

    return make


def test_a_real_video_gives_the_same_logits(both_ways):
    """The short side is the model's: nothing is scaled, and both paths see the same pixels."""
    classifier, exported, ours, theirs = both_ways(128)
    difference = logits(classifier, ours) - logits(exported, theirs)
    assert difference.abs().max() <= 1e-5


@pytest.mark.parametrize(("size", "same_place"), [(64, True), (96, False)])
def test_a_scaled_video_gives_nearly_the_same_answer(both_ways, size, same_place):
    """Both scale bilinearly with antialiasing, but round and place the crop differently.

    Scaled to 64, the frame is 85 wide on both ways and the crop starts at 10: what differs is the
    filter's rounding, less than one of 255 on average. To 96, it is 127.5 wide, which we round and
    Transformers cuts, and the crop is up to a pixel away. So the yardstick is what our own answer
    changes by when the clip moves by one pixel. Measured: 0.006 of 0.052, and 0.010 of 0.024.
    """
    classifier, exported, ours, theirs = both_ways(size)
    answer = logits(classifier, ours).softmax(-1)
    difference = (logits(exported, theirs).softmax(-1) - answer).abs().max()
    moved = max(
        (logits(classifier, ours.roll(step, -1)).softmax(-1) - answer).abs().max()
        for step in (-1, 1)
    )
    assert difference <= (moved / 4 if same_place else moved)
    pixels = (ours - theirs).abs().mean() * 255 * sum(IMAGENET_STD) / 3
    if same_place:
        assert pixels < 1
