"""Reference curves and verdicts: one line per curve, and one sentence for bad input."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from pages import tiny
from project import ROOT

from tats_fast.cli import main
from tats_fast.config import load_config, load_finetune_config, save_config
from tats_fast.report.compare import T_95, Comparison, compare, comparison_figure, value_at, verdict
from tats_fast.report.reference import (
    differences,
    read_reference,
    read_runs,
    settings,
    write_reference,
)


def write_run(folder: Path, seed: int, losses: dict[int, float], **changes) -> Path:
    """The folder of a run with these held-out losses by step."""
    folder.mkdir()
    config = dataclasses.replace(tiny(), name=folder.name, seed=seed, output_dir=str(folder.parent))
    save_config(dataclasses.replace(config, **changes), folder / "config.yaml")
    rows = [{"step": step, "loss_recon_random": loss} for step, loss in losses.items()]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Three seeds of one configuration."""
    last = (0.50, 0.52, 0.54)
    return [write_run(tmp_path / f"r{i}", i, {0: 1.0, 10: last[i]}) for i in range(3)]


@pytest.fixture
def reference(runs, tmp_path) -> Path:
    write_reference(read_runs(runs, "make demo", "a processor"), path := tmp_path / "ref.json")
    return path


def test_a_reference_comes_back_as_it_was_written(runs, reference):
    written, back = read_runs(runs, "make demo", "a processor"), read_reference(reference)
    assert back == written
    assert back.seeds == [0, 1, 2] and back.config["model.width"] == 32
    assert back.curves["loss_recon_random"][2] == [(0.0, 1.0), (10.0, 0.54)]
    assert not {"name", "seed", "output_dir"} & back.config.keys()


def test_runs_of_fine_tuning_have_references_too(tmp_path, capsys):
    for seed, last in enumerate((0.6, 0.7)):
        folder = tmp_path / f"f{seed}"
        folder.mkdir()
        changes = [f"name=f{seed}", f"seed={seed}", "init_from=a", "data.train=b", "data.eval=c"]
        save_config(load_finetune_config(overrides=changes), folder / "config.yaml")
        (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 2.0, "train_top1": 0.2}\n')
        (folder / "eval.jsonl").write_text(json.dumps({"step": 10, "top1": last}) + "\n")
    arguments = [str(tmp_path / "f0"), str(tmp_path / "f1")]
    assert main(["compare", *arguments]) == 0
    out = capsys.readouterr().out
    assert "held-out accuracy, step 10: 0.6, reference 0.7" in out and "training loss" in out


def test_settings_hold_no_path_of_a_machine():
    config = tiny()
    data = dataclasses.replace(config.data, train="some/where/clips/train")
    assert settings(dataclasses.replace(config, data=data))["data.train"] == "train"
    lists = [{"list": f"some/where/{name}.txt", "weight": 1.0} for name in ("k400", "ssv2")]
    config = load_config(None, [f"data.train={json.dumps(lists)}"])
    assert [entry["list"] for entry in settings(config)["data.train"]] == ["k400.txt", "ssv2.txt"]


@pytest.mark.parametrize(
    ("yours", "text"),
    [
        (0.51, "within the spread of the reference's seeds"),
        # A further seed: .52 +- 4.30 * .02 * sqrt(4/3) = .421 to .619.
        (0.60, "above it by 0.06 (worse), as another seed may be"),
        (0.63, "above it by 0.09 (worse), more than another seed explains"),
        (0.40, "below it by 0.1 (better), more than another seed explains"),
    ],
)
def test_the_verdict_is_about_what_another_seed_explains(yours, text):
    assert verdict(Comparison("loss_recon_random", 10, yours, [0.50, 0.52, 0.54])) == text


def test_what_no_shown_digit_tells_apart_is_no_difference():
    """Before its sampler learns, a run's entropy is 1 but for rounding, and so is every seed's."""
    seeds = [0.9999999, 0.9999998, 0.9999999]
    judged = verdict(Comparison("entropy_frac", 3, 0.9999951, seeds))
    assert judged == "within the spread of the reference's seeds"


def test_a_verdict_says_better_only_where_something_is():
    judged = verdict(Comparison("probe_knn", 10, 0.9, [0.5]))
    assert judged == "above it by 0.4 (better); one seed tells no spread"
    assert "better" not in verdict(Comparison("entropy_frac", 10, 0.9, [0.5]))


def test_nineteen_of_twenty_further_seeds_are_as_another_seed_may_be():
    draw = random.Random(0)
    for count in (2, 3, 4):
        assert count - 2 < len(T_95)
        beyond = 0
        for _ in range(2000):
            *theirs, yours = (draw.gauss(0, 1) for _ in range(count + 1))
            beyond += "more than" in verdict(Comparison("loss_recon", 1, yours, theirs))
        # 100 of 2000 with a deviation of 9.7.
        assert 60 < beyond < 140


def test_the_step_is_the_last_that_both_have_reached(runs, tmp_path):
    short = write_run(tmp_path / "short", 9, {0: 1.2, 5: 0.9})
    (found,) = compare(read_runs([short], "", ""), read_runs(runs[:1], "", ""))
    assert (found.step, found.yours, found.theirs) == (5, 0.9, [0.75])
    noisy = [(float(step), float(step % 2)) for step in range(101)]
    assert value_at(noisy, 100) == pytest.approx(0.5)


def test_the_command_compares_draws_and_names_what_differs(runs, reference, tmp_path, capsys):
    assert main(["compare", str(runs[1]), str(reference)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("held-out loss, step 10: 0.52, reference 0.52 (0.5 to")
    assert (runs[1] / "compare.png").read_bytes().startswith(b"\x89PNG")
    masking = dataclasses.replace(tiny().masking, ratio=0.75)
    other = write_run(tmp_path / "other", 0, {0: 1.0, 10: 0.7}, masking=masking)
    assert main(["compare", str(other), str(runs[0]), "--out", str(tmp_path / "a/b.png")]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("(in brackets): masking.ratio=0.75 (0.9)")
    assert "ratio 1.40" in second and (tmp_path / "a/b.png").is_file()


def test_the_command_writes_a_reference_and_its_picture(runs, tmp_path, capsys):
    out = tmp_path / "new.json"
    arguments = ["reference", *map(str, runs), "--made-by", "make demo", "--out", str(out)]
    assert main(arguments) == 0
    assert read_reference(out).command == "make demo" and read_reference(out).hardware
    assert out.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("demo", ""),
        ("demo_random", "masking.strategy=tats (random), train.steps=4000 (4390)"),
    ],
)
def test_the_committed_references_are_of_today_s_quickstart(name, other):
    reference = read_reference(ROOT / f"docs/reference/{name}.json")
    today = settings(load_config(ROOT / "configs/quickstart.yaml"))
    assert differences(today, reference.config) == other
    assert reference.seeds == [0, 1, 2]
    assert {"loss_recon", "loss_recon_random"} <= reference.curves.keys()


def test_the_picture_has_every_run_and_the_reader_s_own(runs):
    three, one = read_runs(runs, "", ""), read_runs(runs[:1], "", "")
    assert [len(a.lines) for a in comparison_figure(three).axes] == [3]
    assert [len(a.lines) for a in comparison_figure(three, one).axes] == [4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "nowhere", "ref.json"], "run=nowhere: no folder of a run"),
        (["compare", "r0", "nowhere.json"], "reference=nowhere.json: No such file"),
        (["compare", "r0", "list.json"], "reference=list.json: no reference curves"),
        (["compare", "r0", "empty.json"], "reference=empty.json: no reference curves"),
        (["compare", "r0", "probed"], "reference=probed: no curve and step in common"),
        (["compare", "silent", "ref.json"], "run=silent: nothing logged yet"),
        (
            ["reference", "r0", "r0", "--made-by", "x", "--out", "a.json"],
            "a seed given twice: 0, 0",
        ),
        (["reference", "r0", "--made-by", "x", "--out", "a.txt"], "out=a.txt: must end in .json"),
        (
            ["reference", "r0", "wide", "--made-by", "x", "--out", "a.json"],
            "masking.ratio=0.5 (0.9)",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    runs, reference, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    record = json.loads(reference.read_text())
    Path("empty.json").write_text(json.dumps({**record, "curves": {"loss_recon": [[], [], []]}}))
    write_run(tmp_path / "silent", 0, {})
    probed = write_run(tmp_path / "probed", 0, {})
    (probed / "eval.jsonl").write_text('{"step": 1, "probe_knn": 0.5}\n')
    masking = dataclasses.replace(tiny().masking, ratio=0.5)
    write_run(tmp_path / "wide", 5, {0: 1.0}, masking=masking)
    assert main(arguments) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(errors) == 1 and words in errors[0]
