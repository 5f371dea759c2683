"""The page's section about probes: what ``tats-fast probe`` wrote, of this checkpoint only."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_video
from models_exchanged import write_run
from pages import Parsed, tiny

from tats_fast.cli import main
from tats_fast.data.video import load_clip
from tats_fast.models import MaskedAutoencoder
from tats_fast.report.probes import Probes, leading_comment, percent, probes_html, read_probes
from tats_fast.report.visualize import write_report

CLASSES = ("down", "left", "right", "up")
ABOUT = "The videos show numbers."
TITLE = "What the features know"


def write_set(folder: Path) -> tuple[Path, Path]:
    """Lists of two videos of every class to train on and one to ask about, 20 frames each."""
    lists = []
    for name, count in (("train", 2), ("test", 1)):
        (folder / name).mkdir(parents=True)
        lines = [f"# {ABOUT}"]
        for kind, label in enumerate(CLASSES):
            for number in range(count):
                path = f"{name}/{label}_{number:02d}.mp4"
                # Frames show their numbers; a tint tells the videos apart.
                tint = 8 * (kind + len(CLASSES) * number)
                write_video(folder / path, 20, turn=lambda image, tint=tint: image // 2 + tint)
                lines.append(f"{path}\t{label}")
        lists.append(folder / f"{name}.txt")
        lists[-1].write_text("\n".join(lines) + "\n")
    return lists[0], lists[1]


def probe(checkpoint: Path, lists: tuple[Path, Path], out: Path) -> None:
    train, test = map(str, lists)
    arguments = ["probe", "--checkpoint", str(checkpoint), "--train", train, "--eval", test]
    arguments += ["--kinds", "linear,knn", "--stride", "1", "--workers", "1", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> Path:
    """A folder with a probed run, its control, and the lists of a few generated videos."""
    folder = tmp_path_factory.mktemp("probed")
    lists = write_set(folder / "motion")
    for seed, name in enumerate(("run", "other")):
        torch.manual_seed(seed)
        write_run(folder / name, MaskedAutoencoder(tiny().model))
    probe(folder / "run", lists, folder / "run/probe")
    probe(folder / "other", lists, folder / "run/probe_untrained")
    return folder


@pytest.fixture
def run(probed, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(probed / "run", tmp_path / "run")
    return tmp_path / "run"


def read(run: Path) -> Probes | None:
    return read_probes(run, run)


def edit(path: Path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def page(run: Path, videos: Path) -> Parsed:
    index = write_report(run, [videos], run / "report")
    return Parsed(index.read_text(encoding="utf-8"))


def test_the_page_ends_with_the_probes(probed, run):
    for name, right in (("probe", 3), ("probe_untrained", 1)):

        def answer(record, right=right):
            for number, result in enumerate(record["results"]):
                result["top1"] = (right - number) / 4

        edit(run / name / "probe.json", answer)
    videos = probed / "motion/test/left_00.mp4"
    parsed = page(run, videos)
    section = parsed.text.partition(TITLE)[2]
    assert "tell 4 classes apart by its features of 8 labelled videos" in section
    assert "asked about 4 others" in section and ABOUT in section and "± 25 points" in section
    table = section.partition("guessing")[2]
    assert "linear75.0%25.0%25.0%nearest neighbours50.0%0.0%25.0%" in table
    pictures = [attrs for tag, attrs in parsed.tags if tag == "img"]
    shown = [attrs["alt"] for attrs in pictures if attrs["alt"].startswith("a video of class")]
    assert shown == [f"a video of class {name}" for name in sorted(CLASSES)]
    assert all(reference.startswith("data:") for reference in parsed.references)

    others = {"random masks": {"linear": [0.9, 0.85, 0.8]}}
    (run / "probe_others.json").write_text(json.dumps(others))
    section = page(run, videos).text.partition(TITLE)[2].partition("guessing")[2]
    assert "random masks" in section and "linear75.0%25.0%25.0%80.0 to 90.0%nearest" in section
    assert "50.0%0.0%25.0%–" in section
    (run / "probe_others.json").unlink()

    shutil.rmtree(run / "probe_untrained")
    section = page(run, videos).text.partition(TITLE)[2]
    assert "before training" not in section.lower() and "linear75.0%25.0%nearest" in section

    shutil.rmtree(run / "probe")
    assert TITLE not in page(run, videos).text


def test_examples_are_the_clips_that_were_probed(probed, run):
    probes = read(run)
    assert [name for name, _ in probes.examples] == probes.classes == sorted(CLASSES)
    name, frames = probes.examples[2]
    clip = load_clip(str(probed / f"motion/test/{name}_00.mp4"), 16, 1, 32)
    assert np.array_equal(frames, clip[::2])  # the first of every tubelet
    # With stride 0 one frame per segment: 20 frames, T = 16 -> 0, 1, 3, 4, 5, 6, 8, ...
    edit(run / "probe/probe.json", lambda record: record["options"].update(stride=0))
    frames = read(run).examples[2][1]
    every = load_clip(str(probed / f"motion/test/{name}_00.mp4"), 20, 1, 32)
    assert np.array_equal(frames[:4], every[[0, 3, 5, 8]])


def test_probes_of_another_checkpoint_are_left_out(probed, run, caplog):
    videos = probed / "motion/test/left_00.mp4"
    shutil.copytree(run / "checkpoints/step_000003", run / "checkpoints/step_000005")
    assert TITLE in page(run, videos).text  # the same weights, whatever the folder's name
    shutil.copytree(probed / "other/checkpoints/step_000003", run / "checkpoints/step_000007")
    with caplog.at_level(logging.WARNING, logger="tats_fast"):
        assert TITLE not in page(run, videos).text
    assert "probe/probe.json left out: it is about another checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("file", "change", "usable"),
    [
        ("probe_untrained", lambda record: record["options"].update(stride=2), True),
        ("probe_untrained", lambda record: record["options"].update(eval="elsewhere.txt"), True),
        ("probe", lambda record: record.pop("classes"), False),
        ("probe", lambda record: record.update(results=[{"kind": "knn"}]), False),
    ],
)
def test_what_cannot_be_compared_or_used_is_left_out_and_named(run, caplog, file, change, usable):
    edit(run / file / "probe.json", change)
    with caplog.at_level(logging.WARNING, logger="tats_fast"):
        probes = read(run)
    assert (probes is not None) == usable
    assert probes is None or (probes.top1 and not probes.untrained)
    assert f"{file}/probe.json left out" in caplog.text


def test_a_damaged_file_is_left_out(run, caplog):
    for content in ("", "[]", '{"results": 3}'):
        (run / "probe/probe.json").write_text(content)
        caplog.clear()
        assert read(run) is None
        assert "probe/probe.json left out" in caplog.text


def test_damaged_figures_of_other_runs_are_left_out(run, caplog):
    for content in ("", "[]", '{"a": {"knn": 3}}', '{"a": {"knn": ["x"]}}'):
        (run / "probe_others.json").write_text(content)
        caplog.clear()
        assert read(run).others == {}
        assert "probe_others.json left out" in caplog.text


def test_shares_of_several_runs_are_a_span():
    assert percent([0.5]) == "50.0%" and percent([0.525, 0.48, 0.5]) == "48.0 to 52.5%"
    assert percent([0.1, 0.1]) == "10.0%" and percent([]) == "–"


def test_videos_that_are_gone_leave_the_table(run, caplog):
    for name in ("probe", "probe_untrained"):
        edit(run / name / "probe.json", lambda record: record["options"].update(eval="gone.txt"))
    probes = read(run)
    assert probes.top1 and probes.untrained and probes.examples == [] and probes.about == ""
    assert "gone.txt" in caplog.text
    assert "<img" not in probes_html(probes)


def test_names_and_comments_are_escaped(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# a <b>\n#c\nv.mp4 1\n# later\n")
    assert leading_comment(path) == "a <b> c"
    assert leading_comment(tmp_path / "none") == ""
    picture = np.zeros((2, 32, 32, 3), np.uint8)
    probes = Probes(
        top1={"<kind>": 0.5},
        untrained={},
        others={},
        classes=["<one>", "two"],
        train_videos=4,
        eval_videos=100,
        about="a <b>",
        examples=[("<one>", picture)],
    )
    text = probes_html(probes)
    for name in ("kind", "one", "b"):
        assert f"&lt;{name}&gt;" in text and f"<{name}>" not in text
    assert "± 5 points" in text
