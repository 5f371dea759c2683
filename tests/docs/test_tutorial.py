"""docs/tutorial.md: every block runs, in order, and writes and prints what the page says."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import av
import pytest
from labelled_files import write_frames
from project import ROOT, TINY_MODEL

from tats_fast.cli import main

CLIPS = {
    "climb": "hmdb51_climb",
    "punch": "hmdb51_punch",
    "street": "surveillance_nofi020",
    "yard": "surveillance_nofi086",
}
"""Class on the page -> the demo's clip that its videos are cut from."""

PAGE = "docs/tutorial.md"
QUICK = ("device=cpu", "train.log_every=2", "train.accumulation=1", "data.workers=0")
SHRINK = {
    "pretrain": (
        *QUICK,
        *(f"model.{name}={value}" for name, value in TINY_MODEL.items()),
        *("train.steps=4", "train.batch_size=8", "train.eval_every=4", "train.image_every=4"),
        *("data.repeats=1", "sampler.warmup_frac=0.5"),
    ),
    "finetune": (
        *QUICK,
        *("model.image_size=null", "model.num_frames=null", "train.steps=4"),
        *("train.batch_size=8", "train.eval_epochs=0"),
    ),
}
"""What is appended to commands that train, and to no other."""
SILENT = ("visualize", "export")
"""Commands that only say what they wrote, so that the page quotes nothing of them."""


@dataclass
class Block:
    """A command or snippet of the page, with what the page says about it."""

    info: str
    """Of the fence: ``bash``, ``bash one-gpu`` or ``python``."""
    text: str
    writes: list[str] = field(default_factory=list)
    """Patterns of paths in the sentence that begins with "Writes"."""
    prints: list[str] = field(default_factory=list)
    """Lines of the ``text`` fence behind it."""


def read_blocks(page: str) -> list[Block]:
    """The blocks that run, in order.

    A one-gpu block stands between a command and what is said about both, so that goes to the first.
    """
    blocks: list[Block] = []
    said: list[Block] = []
    for part in re.split(r"^(```[^\n]*\n.*?^```)$", page, flags=re.MULTILINE | re.DOTALL):
        fence = re.fullmatch(r"```([^\n]*)\n(.*?)```", part, flags=re.DOTALL)
        if fence is None:
            for about in said[-1:]:
                for sentence in re.findall(r"^Writes .*?\.(?:\s|$)", part, re.M | re.S):
                    about.writes += re.findall(r"`([^`]+)`", sentence)
        elif fence[1] == "text":
            for about in said[-1:]:
                about.prints += fence[2].splitlines()
        else:
            blocks.append(Block(fence[1], fence[2]))
            said += [blocks[-1]] * (fence[1] != "bash one-gpu")
    return blocks


def shape(line: str) -> str:
    """A line without its numbers, its class names and the width of its gaps."""
    line = re.sub(rf"\b({'|'.join(CLIPS)})\b", "CLASS", line)
    return " ".join(re.sub(r"\d+(\.\d+)?", "#", line).split())


def run_command(block: Block) -> int:
    """Run it as it stands, but for ``SHRINK``; the exit code."""
    program, *arguments = shlex.split(block.text.replace("\\\n", " "))
    assert program == "tats-fast"
    shrink = SHRINK.get(arguments[0], ())
    if block.info == "bash one-gpu":
        assert shrink  # the folder below is a key of configurations
        shrink += ("output_dir=one_gpu",)
    return main([*arguments, *shrink])


@pytest.fixture
def folder(tmp_path, demo_clips, monkeypatch) -> Path:
    """The working directory of a reader: ``configs/``, and videos of which one is damaged."""
    for label, clip in CLIPS.items():
        with av.open(str(demo_clips / f"{clip}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for part in range(5):
            path = tmp_path / "videos" / ("val" if part == 2 else "train") / label / f"{part}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_frames(path, frames[len(frames) * part // 5 : len(frames) * (part + 1) // 5])
    videos = tmp_path / "videos" / "train" / "climb"
    (videos / "broken.mp4").write_bytes((videos / "0.mp4").read_bytes()[:3000])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(folder, capfd):
    blocks = read_blocks((ROOT / PAGE).read_text())
    names: dict = {}
    for block in blocks:
        assert not any(any(folder.glob(path)) for path in block.writes), block.text
        if block.info == "python":
            exec(compile(block.text, PAGE, "exec"), names)
        else:
            # The damaged video is found, which the page says is exit code 1.
            assert run_command(block) == ("verify" in block.text), block.text
        missing = [path for path in block.writes if not any(folder.glob(path))]
        assert not missing, f"{block.text} wrote no {missing}"
        printed = capfd.readouterr().out
        lines = {shape(line) for line in printed.splitlines()}
        for line in block.prints:
            assert shape(line) in lines, f"{block.text} printed no line like {line!r}:\n{printed}"
    lists_hold_what_the_page_says(folder)
    assert all((folder / "one_gpu" / name).is_dir() for name in ("pretraining", "classifier"))
    assert names["theirs"].config.num_labels == len(CLIPS)


def lists_hold_what_the_page_says(folder: Path) -> None:
    """``path<TAB>class number``, names by number, and no damaged video."""
    assert (folder / "data" / "classes.txt").read_text().split() == list(CLIPS)
    (bad,) = (folder / "verified" / "bad.txt").read_text().splitlines()
    assert bad.startswith(str(folder / "videos/train/climb/broken.mp4") + "\t")
    rows = [line.split("\t") for line in (folder / "data" / "train.txt").read_text().splitlines()]
    assert len(rows) == 4 * len(CLIPS)
    for path, number in rows:
        label = list(CLIPS)[int(number)]
        assert re.fullmatch(rf"videos/train/{label}/[0134]\.mp4", path)


def test_the_page_is_whole():
    """Every claim is tied to a block, every command is there, and flat positions are set."""
    text = (ROOT / PAGE).read_text()
    blocks = read_blocks(text)
    assert {block.info for block in blocks} == {"bash", "bash one-gpu", "python"}
    commands = [block.text.split()[1] for block in blocks if block.info == "bash"]
    assert commands == [
        *("verify", "prepare", "pretrain", "visualize", "probe", "finetune", "evaluate"),
        *("extract-features", "export"),
    ]
    for block in blocks:
        if block.info == "bash":
            assert block.writes and (block.prints or block.text.split()[1] in SILENT), block.text
    assert text.count("\nWrites ") == sum(bool(block.writes) for block in blocks)
    for target in re.findall(r"\]\(([\w.]+)", text):
        assert (ROOT / "docs" / target).is_file(), target
