"""What a study keeps: records, decoded clips, reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import study as script
import torch
from data_files import write_video
from parts.study import report
from parts.study.clips import LabelledClips, make_probe, make_source
from parts.study.spec import Study
from small_study import CPU, tats, tree


def test_a_record_of_other_defaults_is_of_another_cell(tmp_path: Path) -> None:
    """A default that changes, as the reward's did, is in no study's text."""
    study = Study(**tree(strategies={"tats": tats()}, seeds=[0]))
    ((cell,),) = study.packs()
    record = json.loads(json.dumps(script.describe(cell)))
    assert record["circumstances"]["ppo.reward"] == "sparse_change"
    (tmp_path / f"{cell.key}.json").write_text(json.dumps(record))
    assert [*script.finished(study, tmp_path)] == [cell.key]
    record["circumstances"] |= {"ppo.reward": "error"}
    (tmp_path / f"{cell.key}.json").write_text(json.dumps(record))
    assert not script.finished(study, tmp_path)
    del record["circumstances"]["ppo.reward"]  # an option that was not there yet
    (tmp_path / f"{cell.key}.json").write_text(json.dumps(record))
    assert script.finished(study, tmp_path)
    del record["measures"]  # of a version that measured otherwise: to be shown, not averaged with
    (tmp_path / f"{cell.key}.json").write_text(json.dumps(record))
    assert not script.finished(study, tmp_path)
    assert script.finished(study, tmp_path, earlier=True)
    both = Study(**tree(strategies={"tats": tats()}, seeds=[0, 1]))
    other = both.packs()[1][0]
    (tmp_path / f"{other.key}.json").write_text(json.dumps(script.describe(other)))
    assert [*script.finished(both, tmp_path, earlier=True)] == [other.key]


def test_a_changed_list_is_read_again_and_asks_for_new_cells(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", 12, width=16, height=16)
    train, test = (tmp_path / f"{part}.txt" for part in ("train", "test"))
    train.write_text("a.mp4 0\nb.mp4 1\n")
    test.write_text("a.mp4 0\nb.mp4 1\n")
    probe = {"train": str(train), "test": str(test), "clips": 2}
    study = Study(**tree(probes={"mine": probe}, seeds=[0]))
    cell = study.packs()[0][1]
    record, model = script.describe(cell), cell.config.model

    def answers() -> LabelledClips:
        return make_probe(probe, model, CPU, tmp_path / "decoded").test

    assert cell.is_of(record) and answers().labels.tolist() == [0, 0, 1, 1]
    assert answers().videos.tolist() == [0, 0, 1, 1]
    test.write_text("a.mp4 1\nb.mp4 0\na.mp4 1\n")
    assert not cell.is_of(record) and answers().labels.tolist() == [1, 1, 0, 0, 1, 1]
    for path in (train, test):  # on a machine that was given the decoded clips alone
        path.unlink()
    assert cell.is_of(record) and answers().labels.tolist() == [1, 1, 0, 0, 1, 1]


def test_a_report_keeps_what_it_does_not_show(tmp_path: Path, capsys) -> None:
    def record(strategy: str, seed: int, value: float) -> dict:
        place = {"data": "object", "ratio": 0.75, "budget": "steps"}
        curve = [{"step": 2, "object_knn": value}]
        return place | {"strategy": strategy, "seed": seed, "curve": curve}

    study = Study(**tree())
    both = {f"random{seed}": record("random", seed, 10.0 + seed) for seed in (0, 1)}
    one = {"tats0": record("tats", 0, 15.0)}
    report.write(study, both | one, tmp_path)
    assert "| tats | 15.0 of 1 (+5.0) |" in capsys.readouterr().out
    report.write(study, both, tmp_path)
    assert "1 cells of" in capsys.readouterr().out
    assert report.stored(tmp_path).keys() == {"random0", "random1", "tats0"}
    assert "tats" not in (tmp_path / "index.md").read_text()


def test_decoded_clips_are_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    """Another part of the study may read meanwhile, and a write may end in the middle."""
    write_video(tmp_path / "clip.mp4", 12, width=16, height=16)
    (tmp_path / "train.txt").write_text("clip.mp4 0\n")
    model, cache = Study(**tree()).packs()[0][0].config.model, tmp_path / "decoded"

    def cut_short(path, **arrays) -> None:
        save(path, **arrays)
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        save = np.savez_compressed
        patched.setattr(np, "savez_compressed", cut_short)
        with pytest.raises(OSError, match="no space"):
            make_source({"train": str(tmp_path / "train.txt")}, model, 0, CPU, cache)
    assert list(cache.iterdir()) == []
    make_source({"train": str(tmp_path / "train.txt")}, model, 0, CPU, cache)
    assert len(list(cache.glob("*.npz"))) == 1


def test_lists_of_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    for folder, side in (("one", 16), ("other", 32)):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "clip.mp4", 12, width=side, height=side)
        (tmp_path / folder / "train.txt").write_text("clip.mp4 0\n")
    model = Study(**tree()).packs()[0][0].config.model
    banks = [
        make_source({"train": str(tmp_path / folder / "train.txt")}, model, 0, CPU, tmp_path).bank
        for folder in ("one", "other")
    ]
    assert not torch.equal(*banks)
