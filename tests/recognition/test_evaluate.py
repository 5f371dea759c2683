"""Multi-view accuracy: against views taken one by one, honest about bad files, and the command."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import numbered_frame, numbers, write_video
from PIL import Image
from project import TINY_MODEL

from tats_fast.cli import main
from tats_fast.config import FinetuneConfig, ModelConfig, save_config
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.lists import Video
from tats_fast.data.views import decode_views, side_crops
from tats_fast.interchange import read_weights, save_weights
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.recognition import decoding as module
from tats_fast.recognition.scores import Views, class_scores, merged
from tats_fast.weights_file import write_state

CLASSES = ("run", "walk", "jump")
HOW = {"batch_size": 4, "workers": 1, "timeout": 60.0}


def make_classifier() -> VideoClassifier:
    """In training mode, with weights so large that videos and views differ in their classes."""
    torch.manual_seed(3)
    classifier = VideoClassifier(ModelConfig(**TINY_MODEL), len(CLASSES), head_dropout=0.5)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(classifier.head.weight, std=4)
    frames = [[numbered_frame(n + i, 32, 32) for i in range(8)] for n in (0, 8, 16, 32)]
    clips = torch.tensor(np.array(frames)).permute(0, 4, 1, 2, 3) / 64 - 2
    with torch.no_grad():  # or one class would win everywhere
        classifier.head.bias -= classifier.eval()(clips).mean(0)
    return classifier.train()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos of 12, 40, 5 and 21 frames, a broken one, lists, and a fine-tuned run."""
    folder = tmp_path_factory.mktemp("evaluate")
    for count in (12, 40, 5, 21):
        write_video(folder / f"{count}.mp4", count, width=96, height=64)
    (folder / "broken.mp4").write_bytes(b"no video")
    good = ["12.mp4 jump", "40.mp4 walk", "5.mp4 run", "21.mp4 run"]
    (folder / "good.txt").write_text("\n".join(good) + "\n")
    (folder / "list.txt").write_text("\n".join([good[0], "broken.mp4 jump", *good[1:]]) + "\n")
    write_fine_tuned(folder / "run", eval=str(folder / "good.txt"), stride=2, clips=2, crops=1)
    return folder


def write_fine_tuned(run: Path, **data) -> Path:
    """A fine-tuned run's newest checkpoint; returns its folder."""
    checkpoint = run / "checkpoints" / "step_000002"
    checkpoint.mkdir(parents=True)
    save_config(FinetuneConfig(data=LabelledDataConfig(**data)), checkpoint / "config.yaml")
    content = {
        "classifier": make_classifier().state_dict(),
        "model": dataclasses.asdict(ModelConfig(**TINY_MODEL)),
        "classes": list(CLASSES),
        "norm_eps": 1e-6,
    }
    write_state(content, checkpoint / "model.safetensors")
    return checkpoint


@pytest.fixture
def videos(folder) -> list[Video]:
    return [Video(str(folder / f"{count}.mp4")) for count in (12, 40, 5)]


# Frame numbers of each clip of T = 8, by hand.
DENSE = {  # stride 3, 2 clips: 40 frames keep 14, room 6
    12: [[0, 3, 6, 9, 9, 9, 9, 9]] * 2,
    40: [[*range(0, 24, 3)], [*range(18, 40, 3)]],
    5: [[0, 3, 3, 3, 3, 3, 3, 3]] * 2,
}
SEGMENTS = {  # starts and middles of eighths
    12: [[0, 1, 3, 4, 6, 7, 9, 10], [0, 2, 3, 5, 6, 8, 9, 11]],
    40: [[*range(0, 40, 5)], [*range(2, 40, 5)]],
    5: [[0, 0, 1, 1, 2, 3, 3, 4], [0, 0, 1, 2, 2, 3, 4, 4]],
}


@pytest.mark.parametrize(("stride", "by_hand"), [(3, DENSE), (0, SEGMENTS)])
def test_probabilities_are_the_mean_over_views_one_by_one(videos, stride, by_hand):
    classifier = make_classifier()
    found = class_scores(classifier, videos, Views(stride=stride, clips=2, crops=3), **HOW)
    assert found.numbers == [0, 1, 2] and found.bad == []
    assert found.probabilities.dtype == torch.float32
    classifier.eval()
    for row, (video, clips) in enumerate(zip(videos, by_hand.values(), strict=True)):
        seen = []
        for frames in clips:
            for crop in side_crops(3):
                view = decode_views(video.path, lambda _, f=frames: [f], [crop], 32)[0, 0]
                if crop(96, 64)[0] == 16:
                    assert numbers(view) == frames
                normalised = (view / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
                pixels = torch.tensor(normalised, dtype=torch.float32).permute(3, 0, 1, 2)
                with torch.no_grad():
                    logits = classifier(pixels[None])[0].double()
                seen.append(logits.exp() / logits.exp().sum())
        probabilities = torch.stack(seen)
        # Averaging logits, or leaving out a view, would give something else.
        assert probabilities.std(0).max() > 0.02
        expected = probabilities.mean(0).float()
        torch.testing.assert_close(found.probabilities[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "turned"),
    [({"batch_size": 1}, False), ({"batch_size": 100, "workers": 3}, False), ({}, True)],
)
def test_neither_batches_nor_workers_nor_order_matter(videos, how, turned):
    classifier, views = make_classifier(), Views(stride=2, clips=2, crops=2)
    expected = class_scores(classifier, videos, views, **HOW).probabilities
    torch.testing.assert_close(expected.sum(1), torch.ones(3))
    step = -1 if turned else 1
    found = class_scores(classifier, videos[::step], views, **{**HOW, **how}).probabilities
    torch.testing.assert_close(found, expected.flip(0) if turned else expected)


def test_the_classifier_is_left_as_it_was(videos):
    classifier = make_classifier().train()
    classifier.encoder.blocks[0].eval()  # frozen
    modes = [m.training for m in classifier.modules()]
    class_scores(classifier, videos[:1], Views(clips=1, crops=1), **HOW)
    assert [m.training for m in classifier.modules()] == modes
    assert len({*modes}) == 2


def test_ranks_share_the_videos(videos, folder):
    classifier, views = make_classifier(), Views(clips=1, crops=1)
    missing = [Video(str(folder / f"missing_{n}.mp4")) for n in range(3)]
    listed = [missing[0], *videos, missing[1], missing[2]]
    whole = class_scores(classifier, listed, views, **HOW)
    parts = [
        class_scores(classifier, listed, views, **HOW, rank=rank, world_size=2) for rank in (0, 1)
    ]
    assert [(part.numbers, part.bad_numbers) for part in parts] == [([2], [0, 4]), ([1, 3], [5])]
    together = merged(parts)
    assert together.numbers == whole.numbers == [1, 2, 3]
    torch.testing.assert_close(together.probabilities, whole.probabilities)
    assert together.bad == whole.bad and together.bad_numbers == [0, 4, 5]
    assert [path for path, _ in whole.bad] == [video.path for video in missing]
    # More ranks than videos: some have nothing to do.
    idle = class_scores(classifier, videos, views, **HOW, rank=3, world_size=4)
    assert idle.numbers == [] and idle.probabilities.shape == (0, 3)


def test_bad_files_cost_themselves_alone(videos, folder):
    classifier, views = make_classifier(), Views(clips=1, crops=2)
    listed = [
        Video(str(folder / "broken.mp4")),
        videos[0],
        Video(str(folder / "missing.mp4")),
        *videos[1:],
    ]
    found = class_scores(classifier, listed, views, **HOW)
    assert found.numbers == [1, 3, 4] and found.bad_numbers == [0, 2]
    assert [path for path, _ in found.bad] == [listed[0].path, listed[2].path]
    assert all(reason for _, reason in found.bad)
    expected = class_scores(classifier, videos, views, **HOW).probabilities
    torch.testing.assert_close(found.probabilities, expected)


@pytest.mark.parametrize("failure", ["dies", "hangs"])
@pytest.mark.parametrize("times", [1, 9])
def test_a_lost_video_is_tried_once_more(videos, tmp_path, monkeypatch, failure, times):
    tries = tmp_path / "tries"

    def decode(path, *args):
        if path == videos[1].path:
            with open(tries, "a") as file:
                file.write("x")
            if tries.stat().st_size <= times:
                time.sleep(60) if failure == "hangs" else os._exit(3)
        return decode_views(path, *args)

    monkeypatch.setattr(module, "decode_views", decode)
    views = Views(clips=1, crops=1)
    how = {**HOW, "timeout": 1.0 if failure == "hangs" else 60.0}
    found = class_scores(make_classifier(), videos, views, **how)
    assert tries.read_text() == "xx"
    if times == 1:
        assert found.numbers == [0, 1, 2] and found.bad == []
    else:
        reason = "took longer than 1 s" if failure == "hangs" else "exit 3"
        assert found.numbers == [0, 2] and found.bad_numbers == [1]
        assert found.bad[0][0] == videos[1].path and reason in found.bad[0][1]


def command(folder, **options):
    pairs = {"checkpoint": folder / "run", "device": "cpu", "workers": 1, **options}
    return ["evaluate", *(str(x) for k, v in pairs.items() for x in (f"--{k}", v))]


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_out_what_it_left_out_in_training(folder, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_text(f"{folder / 'broken.mp4'}\tno video\n{folder / '40.mp4'}\ttoo slow\n")
    data = {"eval": str(folder / "list.txt"), "quarantine": str(bad)}
    write_fine_tuned(tmp_path / "run", **data, stride=2, clips=1, crops=1)
    assert main(command(tmp_path)) == 0
    assert "without 2 of the list's 5 videos, which data.quarantine" in capsys.readouterr().out
    rows = read_csv(tmp_path / "run" / "evaluation" / "predictions.csv")
    assert [Path(row["path"]).name for row in rows] == ["12.mp4", "5.mp4", "21.mp4"]
    # Another list has its own videos.
    assert main(command(tmp_path, list=folder / "list.txt", out=tmp_path / "out")) == 1


def test_a_run_needs_nothing_else(folder, capsys):
    assert main(command(folder)) == 0
    printed = capsys.readouterr().out
    assert "4 videos, 3 classes, 2 clips x 1 crops, stride 2; 0 unreadable" in printed
    out = folder / "run" / "evaluation"
    record = json.loads((out / "evaluation.json").read_text())
    assert record["views"] == {"stride": 2, "fps": None, "clips": 2, "crops": 1}
    assert record["list"] == str(folder / "good.txt")
    assert record["accuracy"] == record["lower_bound"] and record["unreadable"] == []
    assert f"{100 * record['accuracy']['top1']:.2f}" in printed and str(out) in printed
    # Files beside each other that appear whole.
    names = ["confusion.csv", "confusion.png", "evaluation.json", "per_class.csv"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "predictions.csv"]


def test_files_say_what_the_classifier_says(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = command(folder, list=folder / "list.txt", out=out, stride=3, clips=2, crops=3)
    assert main(arguments) == 1, "something was unreadable"
    printed = capsys.readouterr().out
    assert "1 unreadable" in printed and "unreadable wrong" in printed

    truth = {"12.mp4": "jump", "40.mp4": "walk", "5.mp4": "run", "21.mp4": "run"}
    listed = [Video(str(folder / name)) for name in truth]
    views = Views(stride=3, clips=2, crops=3)
    expected = class_scores(make_classifier().eval(), listed, views, **HOW).probabilities
    rows = read_csv(out / "predictions.csv")
    assert [(Path(row["path"]).name, row["label"]) for row in rows] == [*truth.items()]
    right = 0
    for row, probabilities in zip(rows, expected, strict=True):
        order = probabilities.argsort(descending=True).tolist()
        assert [row[f"predicted_{n}"] for n in (1, 2, 3)] == [CLASSES[i] for i in order]
        values = [float(row[f"probability_{n}"]) for n in (1, 2, 3)]
        assert values == pytest.approx(probabilities[order].tolist(), abs=1e-5)
        assert "predicted_4" not in row
        right += row["label"] == row["predicted_1"]
    assert 0 < right < 4

    record = json.loads((out / "evaluation.json").read_text())
    assert record["classes"] == list(CLASSES)
    assert (record["videos"], record["readable"]) == (5, 4)
    assert record["unreadable"][0][0] == str(folder / "broken.mp4")
    assert record["accuracy"]["top1"] == right / 4 and record["accuracy"]["top5"] is None
    assert record["lower_bound"]["top1"] == right / 5

    with open(out / "confusion.csv", newline="", encoding="utf-8") as file:
        header, *matrix = csv.reader(file)
    assert header[1:] == [row[0] for row in matrix] == list(CLASSES)
    for row in matrix:
        for name, count in zip(CLASSES, row[1:], strict=True):
            pairs = [(r["label"], r["predicted_1"]) for r in rows]
            assert int(count) == pairs.count((row[0], name))
    for row, cells in zip(read_csv(out / "per_class.csv"), matrix, strict=True):
        counts = [int(cell) for cell in cells[1:]]
        number = CLASSES.index(row["class"])
        assert (int(row["videos"]), int(row["right"])) == (sum(counts), counts[number])
        assert int(row["unreadable"]) == (row["class"] == "jump")
        assert float(row["accuracy"]) == pytest.approx(counts[number] / sum(counts))
        counts[number] = 0
        assert int(row["times"]) == max(counts)
        assert row["taken_for"] == (CLASSES[int(np.argmax(counts))] if max(counts) else "")
    with Image.open(out / "confusion.png") as picture:
        picture.load()


def test_checkpoint_folder_file_and_foreign_place(folder, tmp_path, monkeypatch, capsys):
    """A checkpoint knows its run; a file elsewhere has views of its own and writes here."""
    checkpoint = write_fine_tuned(tmp_path / "other", eval=str(folder / "good.txt"), clips=1)
    for path in (checkpoint, checkpoint / "model.safetensors"):
        assert main(command(folder, checkpoint=path)) == 0
        written = tmp_path / "other" / "evaluation" / "evaluation.json"
        assert json.loads(written.read_text())["views"] == {
            "stride": 4,
            "fps": None,
            "clips": 1,
            "crops": 3,
        }
        written.unlink()
    alone = tmp_path / "alone.safetensors"
    (checkpoint / "model.safetensors").rename(alone)
    monkeypatch.chdir(tmp_path)
    assert main(command(folder, checkpoint=alone)) == 2
    assert "--list: not given" in capsys.readouterr().err
    assert main(command(folder, checkpoint=alone, list=folder / "good.txt")) == 0
    record = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert record["views"] == {"stride": 4, "fps": None, "clips": 5, "crops": 3}


def test_an_imported_file_remembers_how_frames_were_taken(folder, tmp_path):
    imported = save_weights(read_weights(folder / "run"), tmp_path / "imported.safetensors")
    out = tmp_path / "out"
    for more, stride in (({}, 2), ({"stride": 3}, 3)):
        options = {"checkpoint": imported, "list": folder / "good.txt", "out": out, **more}
        assert main(command(folder, **options)) == 0
        record = json.loads((out / "evaluation.json").read_text())
        assert record["views"] == {"stride": stride, "fps": None, "clips": 5, "crops": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": -1}, "--stride=-1: must be at least 0"),
        ({"crops": 0}, "--crops=0: must be at least 1"),
        ({"batch-size": 0}, "--batch-size=0: must be at least 1"),
        ({"workers": 0}, "--workers=0: must be at least 1"),
        ({"timeout": 0}, "--timeout=0.0: must be above 0"),
        ({"list": "nowhere.txt"}, "--list=nowhere.txt: no such file"),
        ({"checkpoint": "nowhere"}, "nowhere"),
        ({"list": "bare.txt"}, "5.mp4 has no label"),
        ({"list": "unknown.txt"}, "the label swim"),
        ({"list": "bad.txt"}, "--list: no video could be read, for example"),
        ({"out": "broken.mp4/out"}, "broken.mp4 is a file; give a folder"),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    (folder / "bare.txt").write_text("5.mp4\n")
    (folder / "unknown.txt").write_text("5.mp4 swim\n")
    (folder / "bad.txt").write_text("broken.mp4 run\n")
    assert main(command(folder, **{"out": tmp_path / "out", **options})) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


def test_a_pretrained_model_has_no_classes(folder, tmp_path, capsys):
    from tats_fast.models.mae import MaskedAutoencoder

    run = tmp_path / "run" / "checkpoints" / "step_000001"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({"model": TINY_MODEL, "masking": {"ratio": 0.75}}))
    state = MaskedAutoencoder(ModelConfig(**TINY_MODEL)).state_dict()
    write_state({"mae": state, "sampler": None}, run / "model.safetensors")
    assert main(command(folder, checkpoint=tmp_path / "run", list=folder / "good.txt")) == 2
    error = capsys.readouterr().err
    assert "fine-tune it first" in error and len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_processes_are_one(folder, tmp_path):
    options = {"list": folder / "list.txt", "stride": 2, "clips": 2, "crops": 3}
    assert main(command(folder, **options, out=tmp_path / "one")) == 1
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node=2"]
    done = subprocess.run(
        [
            *(*torchrun, "--master_port=29741", "-m", "tats_fast"),
            *command(folder, **options, out=tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stdout.count("wrote ") == 1
    one, two = (tmp_path / name for name in ("one", "two"))
    assert (one / "evaluation.json").read_text() == (two / "evaluation.json").read_text()
    for name in ("confusion.csv", "per_class.csv", "confusion.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    pairs = zip(*(read_csv(path / "predictions.csv") for path in (one, two)), strict=True)
    for first, second in pairs:
        for key, value in first.items():
            if key.startswith("probability"):  # other batches round otherwise
                value, second[key] = float(value), pytest.approx(float(second[key]), abs=2e-6)
            assert value == second[key]
