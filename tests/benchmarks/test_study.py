"""The study: its cells, what it measures of them, and that it goes on where it was."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import study as script
import torch
import yaml
from parts.study import report
from parts.study.clips import LabelledClips, make_probe, make_source
from parts.study.measures import chance
from parts.study.spec import Study, read_study
from parts.study.training import CellRun, train_pack
from scripts import run_script
from small_study import CPU, tats, tree

from tats_fast.config import ConfigError


def test_cells_controls_once_and_compute_for_what_learns() -> None:
    study = Study(**tree(ratios=[0.5, 0.75], budgets=["steps", "compute"]))
    first, second = study.packs()
    assert [cell.seed for cell in first + second].count(0) == len(first) == len(second)
    assert [cell.key for cell in first] == [
        "object_untrained_0.5_seed0",
        "object_random_0.5_seed0",
        "object_tats_0.5_seed0",
        "object_tats_0.5_seed0_compute",
        "object_oracle_0.5_seed0",
        "object_random_0.75_seed0",
        "object_tats_0.75_seed0",
        "object_tats_0.75_seed0_compute",
        "object_oracle_0.75_seed0",
    ]


def test_equal_compute_is_fewer_steps_of_the_same_cost() -> None:
    study = Study(**tree(steps=1000, budgets=["compute"], strategies={"tats": tats()}))
    (cell,) = study.packs()[0]
    assert 300 < cell.steps < 950  # half of them with a resting sampler
    still = Study(**tree(steps=1000, budgets=["steps"], strategies={"tats": tats()}))
    assert still.packs()[0][0].steps == 1000


def test_a_changed_study_has_other_cells() -> None:
    one, other = (Study(**tree(steps=steps)).packs()[0][1] for steps in (2, 3))
    renamed = Study(**tree(name="other", seeds=[0, 1, 2])).packs()[0][1]
    assert one.key == other.key and one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == renamed.fingerprint()


def test_estimates_and_differences_are_paired_by_seed() -> None:
    assert report.estimate([1.0, 3.0])[:2] == (2.0, 1.0)
    assert math.isnan(report.estimate([1.0]).error)
    ours = {0: {"knn": 11.0}, 1: {"knn": 21.0}, 2: {"knn": 0.0}}
    theirs = {0: {"knn": 10.0}, 1: {"knn": 20.0}}
    difference = report.paired(ours, theirs, "knn")
    assert difference == (1.0, 0.0, 2)  # spread of the seeds themselves: 10
    assert report.paired(ours, {}, "knn") is None


def test_an_oracle_sees_what_moves_and_others_do_not(tmp_path: Path) -> None:
    study = Study(**tree())
    cells = {cell.strategy: cell for cell in study.packs()[0]}
    model = cells["random"].config.model
    source = make_source(study.data["object"], model, 0, CPU, tmp_path)
    runs = [CellRun(cells[name], CPU) for name in ("random", "oracle")]
    lifts: dict[str, list[float]] = {"random": [], "oracle": []}
    for number in range(12):
        batch = source.batch(64, number)
        for run in runs:
            run.done = 0
            run.step(batch)
            lifts[run.cell.strategy].append(run.metrics["motion_lift"].item())
    # The oracle's "motion" is 1 + 7 x the share that moves; random's the frame difference.
    assert sum(lifts["oracle"]) / 12 > 1.1
    assert abs(sum(lifts["random"]) / 12 - 1) < 0.15


def test_runs_of_a_pack_see_the_same_clips_and_stop_where_they_should(tmp_path: Path) -> None:
    study = Study(**tree(steps=3))
    cells = [cell for cell in study.packs()[0] if cell.strategy == "random"] * 2
    source = make_source(study.data["object"], cells[0].config.model, 0, CPU, tmp_path)
    runs = [CellRun(cell, CPU) for cell in cells]
    stops = [step for step, _ in train_pack(runs, source, 4, [1, 3])]
    assert stops == [1, 3]
    first, second = (run.encoder.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_probes_of_generated_clips_are_held_out(tmp_path: Path) -> None:
    model = Study(**tree()).packs()[0][0].config.model
    train, test, classes = make_probe(
        {"task": "object", "train": 8, "test": 8}, model, CPU, tmp_path
    )
    assert len(classes) == 8
    assert not torch.equal(train.clips, test.clips)
    assert train.moving.shape == (8, model.num_tokens)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_run_that_lags_behind_still_sees_its_own_batch(tmp_path: Path) -> None:
    """Nothing may be written where a batch lies that a slow stream has not read yet."""
    study = Study(**tree(strategies={"oracle": {"oracle": 8}}))
    (cell,), device = study.packs()[0], torch.device("cuda")
    run = CellRun(cell, device)
    source = make_source(study.data["object"], cell.config.model, 0, device, tmp_path)
    for number in range(2):
        run.done = 0
        batch = source.batch(4, number)
        truth = batch.moving.clone()
        with torch.cuda.stream(run._stream):
            torch.cuda._sleep(200_000_000)
        run.step(batch)
        shape, batch = batch.moving.shape, None
        for _ in range(50):  # takes the memory, if it is to be had, before the run wakes
            torch.full(shape, -1.0, device=device)
        torch.cuda.synchronize()
        assert torch.equal(run._moving, truth)


def test_a_cell_is_written_while_the_next_one_trains(tmp_path: Path, monkeypatch) -> None:
    """What is killed then costs that one alone."""
    seen = []

    def train(cells, sets, device, pool, out) -> dict:
        for key in seen:
            deadline = time.monotonic() + 30
            while not (out / f"{key}.json").exists():
                assert time.monotonic() < deadline, f"{key} is not written"
                time.sleep(0.01)
        seen.append(cells[0].key)
        return {cells[0].key: {"curve": [{"step": 2, "probes": {}}]}}

    monkeypatch.setattr(script, "train", train)
    script.work(Study(**tree(probes={})), tmp_path, CPU, 1, None, slice(None))
    assert len(seen) == 8  # four strategies, two seeds

    def fails(records, out, environment) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(script, "_write", fails)
    with pytest.raises(OSError, match="no space"):
        script.work(Study(**tree(probes={}, seeds=[2])), tmp_path, CPU, 1, None, slice(None))


def test_loss_and_looks_are_of_clips_like_those_trained_on(tmp_path: Path) -> None:
    """Whatever the probes are called."""
    data = {"mine": {"task": "object", "area": 0.3}, "object": {"task": "object"}}
    study = Study(**tree(data=data))
    model = study.packs()[0][0].config.model
    sets = {"object": make_probe(study.probes["object"], model, CPU, tmp_path)}
    cells = {pack[0].data: pack[0] for pack in study.packs()}
    assert script._clips_of(study, cells["object"], sets, CPU) is sets["object"].test
    mine = script._clips_of(study, cells["mine"], sets, CPU)
    assert mine.moving.mean() > 2 * sets["object"].test.moving.mean() > 0


def test_chance_is_the_most_frequent_class() -> None:
    clips, labels = torch.zeros(4, 1), torch.tensor([2, 0, 2, 1])
    assert chance(LabelledClips(clips, labels, None)) == 50


def test_charts_know_the_chance_of_every_kind_of_score() -> None:
    records = {"old": {}, "new": {"chance": {"object": 12.5, "real_people": 11.0}}}
    for score in ("object_knn", "object_linear", "object_linear_bn", "object_tuned20"):
        assert report.chance_of(records, score) == 12.5
    assert report.chance_of(records, "real_people_linear_bn") == 11
    assert report.chance_of(records, "loss") is None
    assert report.chance_of({"old": {}}, "object_knn") is None


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    data = {"object": {"task": "object", "area": 0.1, "strategies": ["untrained", "tats"]}}
    settings = tree(shots=[1], data=data, kinds=["knn", "attentive"])
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.mark.slow
def test_trains_measures_reports_and_goes_on(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [study_file, "--out", out, "--device", "cpu"]
    text = completed(*arguments, "seeds=[0]")
    assert "| tats |" in text
    assert all(name in text for name in ("object_knn", "object_attentive", "object_tuned1"))
    record = json.loads((out / "object_tats_0.75_seed0.json").read_text())
    assert record["steps"] == 2 and record["curve"][-1]["step"] == 2
    assert 0 <= record["curve"][-1]["object_knn"] <= 100
    assert 100 / 8 <= record["chance"]["object"] < 100
    written = {path: path.stat().st_mtime_ns for path in out.glob("object_*.json")}
    assert len(written) == 2
    listed = completed(*arguments, "--list").splitlines()
    assert [line.split()[0] for line in listed] == ["done"] * 2 + ["open"] * 2
    completed(*arguments)  # the second seed alone
    after = {path: path.stat().st_mtime_ns for path in out.glob("object_*.json")}
    assert len(after) == 4 and written.items() <= after.items()
    assert "± " in (out / "index.md").read_text()
    assert (out / "scores.png").stat().st_size > 1000
    # The starting weights are fine-tuned too: what training from scratch gives.
    assert "object_tuned1" in json.loads((out / "object_untrained_0.75_seed0.json").read_text())
    for path in after:  # the report's own file holds them all
        path.unlink()
    again = completed(*arguments, "--report", "--against", "tats")
    assert "| untrained |" in again
    assert "difference to `tats`" in (out / "index.md").read_text()


def completed(*arguments: object) -> str:
    """What a study that succeeds prints. It runs as a process: its pool leaves one behind."""
    run = run_script("study.py", *arguments, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"budgets": ["hours"]}, "budgets: hours: must be one of steps, compute"),
        ({"strategy": {}}, "strategy is unknown"),
        ({"strategies": {"x": {"masking.strategy": "best"}}}, "masking.strategy=best"),
        ({"data": {"object": {"task": "object", "strategies": ["nobody"]}}}, "'nobody'"),
        ({"probes": {"object": {"task": "object", "train": 8}}}, "probes.object: test is missing"),
        ({"data": {"mine": {"train": "list.txt"}}}, "data.mine: oracle needs labels or the truth"),
        ({"probes": {"object:{task:object": None}}, "expected a mapping"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line(
    changes: dict, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(tree(**changes)))
    assert script.main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_nobody_to_compare_with_is_one_line(study_file: Path, tmp_path: Path, capsys) -> None:
    assert script.main([str(study_file), "--out", str(tmp_path), "--against", "best"]) == 2
    assert "--against best: must be one of" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["2", "1/1", "a/b"])
def test_a_part_that_is_none_is_one_line(part: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["gpu10", "--out", str(tmp_path), "--part", part])
    assert "is not I/N with I below N" in capsys.readouterr().err


def test_presets_can_be_read_and_unknown_ones_are_named(tmp_path: Path) -> None:
    study = read_study("gpu10", ["steps=7", "model.depth=2"])
    assert study.steps == 7 and study.packs()[0][2].config.model.depth == 2
    with pytest.raises(ConfigError, match="presets are gpu10"):
        read_study(str(tmp_path / "nothing"))


@pytest.mark.slow
def test_the_gpu_preset_runs_dry(tmp_path: Path) -> None:
    """All its strategies, on the CPU with a model of a block and two steps."""
    small = {"width": 32, "depth": 1, "heads": 1, "decoder_width": 32, "decoder_depth": 1}
    changes = [f"model.{name}={value}" for name, value in small.items()]
    changes += ["model.image_size=16", "steps=2", "batch_size=2", "seeds=[0]", "curve=1"]
    changes += ["strategies.supervised={steps: 2}"]
    changes += ["probes={object: {task: object, train: 48, test: 16, kinds: [knn]}}"]
    arguments = [
        "gpu10",
        *changes,
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--side-by-side",
        "12",
    ]
    completed(*arguments)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("object*_seed0.json")]
    assert {record["strategy"] for record in records} == set(read_study("gpu10").strategies)
    trained = [r for r in records if r["strategy"] not in ("untrained", "supervised")]
    assert all("object_knn" in record["curve"][-1] for record in trained)
