"""benchmarks/throughput.py: the record's layout, a gate that closes, and the clips."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import plots
import pytest
import throughput
import torch
from parts.ops import timing
from parts.step import paths, stages
from parts.step.clips import moving_texture, texture
from project import ROOT
from scripts import run_script

from tats_fast.config import load_config
from tats_fast.kernels import dispatch
from tats_fast.models.patchify import motion_energy, patchify, roughness

BENCHMARKS = ROOT / "benchmarks"
RECORD = BENCHMARKS / "records" / "2026-11-22_cpu_epyc_2core"
TINY = (
    *("--device", "cpu", "--batch", "2", "--steps", "2", "--image-size", "32", "--frames", "8"),
    *("--precision", "fp32"),  # whose gate is tight
    *("--mask-ratio", "0.75", "model.patch_size=8", "model.width=32", "model.depth=2"),
    *("model.heads=2", "model.decoder_width=16", "model.decoder_depth=1"),
    "model.decoder_heads=2",
)
PATH_KEYS = {
    *("clips_per_s", "step_ms", "stages_ms", "peak_mem_mb", "tflops", "mfu", "mfu_data_sheet"),
    *("planned_mem_mb", "loss"),
}
RECORD_KEYS = {"hardware", "versions", "commit", "config"}


def test_throughput_end_to_end(tmp_path):
    file = tmp_path / "record.json"
    done = run_script(
        "throughput.py", *TINY, "--inner-epochs", 2, "--peak-tflops", 1, "--json", file
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert set(record) == {*RECORD_KEYS, "paths"}
    assert list(record["paths"]) == ["reference", "sdpa", "fast"]
    assert record["config"]["inner_epochs"] == 2 and "K=2" in done.stdout
    assert record["config"]["visible"] == 16 and record["config"]["tokens"] == 64
    levels = {name: how["kernels"] for name, how in record["config"]["paths"].items()}
    assert set(levels["reference"].values()) == set(levels["sdpa"].values()) == {"reference"}
    assert levels["fast"]["trajectory_temporal"] == "torch"
    attention = {name: how["attention"] for name, how in record["config"]["paths"].items()}
    assert attention == {"reference": "eager", "sdpa": "sdpa", "fast": "sdpa"}
    for name, path in record["paths"].items():
        assert set(path) == PATH_KEYS
        assert (path["planned_mem_mb"] is None) == (name != "fast")  # nobody trains by the others
        assert name in done.stdout
        p20, p50, p80 = (path["step_ms"][p] for p in ("p20", "p50", "p80"))
        assert 0 < p20 <= p50 <= p80
        assert path["clips_per_s"] == pytest.approx(2e3 / p50)
        assert path["mfu"] == pytest.approx(path["tflops"] / 1)
        assert path["stages_ms"].pop("data_wait") is None
        # No stage is empty: each function that is clocked is one that the step really calls.
        assert all(value > 0 for value in path["stages_ms"].values())
    planned, measured = (record["paths"]["fast"][f"{of}_mem_mb"] for of in ("planned", "peak"))
    assert f"peak memory, planned over measured: fast {planned / measured:.2f}" in done.stdout


def test_a_quarter_of_the_clips_teaches_the_sampler(tmp_path):
    file = tmp_path / "record.json"
    arguments = [*TINY, "--batch", 4, "--paths", "fast,every4", "--json", file]
    done = run_script("throughput.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "other masks or lessons, so no gate and losses that do not compare: every4" in done.stdout
    )
    fast, every4 = json.loads(file.read_text())["paths"].values()
    assert fast["loss"] == pytest.approx(every4["loss"])
    work = [path["tflops"] * path["step_ms"]["p50"] for path in (fast, every4)]
    assert work[1] < 0.8 * work[0]
    assert every4["peak_mem_mb"] < fast["peak_mem_mb"]


def test_stages_sum_to_the_step_they_were_measured_in():
    config = throughput.read_config(throughput.make_parser().parse_intermixed_args(TINY), 2)
    clips, _ = paths.load_clips(config.model, 2, 0)
    device = torch.device("cpu")
    contender = paths.make_contender(paths.PATHS["fast"], config, device, clips)
    seconds = []

    def timed_step():
        start = time.perf_counter()
        contender.step()
        seconds.append(time.perf_counter() - start)

    forward = contender.learner.sampler.forward
    spent = stages.stages_ms(timed_step, contender.learner, device)
    assert sum(spent.values()) == pytest.approx(1e3 * seconds[0], rel=0.05)
    # Nothing stays wrapped.
    assert contender.learner.sampler.forward == forward
    assert "forward" not in vars(contender.learner.sampler)


def break_op(monkeypatch, op, change):
    """Let the torch level of ``op`` return something else first."""
    right = dispatch._registry[op]["torch"]

    def wrong(*args):
        out = right(*args)
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    monkeypatch.setitem(dispatch._registry[op], "torch", wrong)


class _WrongGradient(torch.autograd.Function):
    """Identity whose gradient is 5% too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.05 * grad


@pytest.mark.parametrize(
    ("op", "change", "named"),
    [
        ("masked_mse", lambda x: 1.001 * x, "loss_recon"),
        ("masked_mse", _WrongGradient.apply, "grad_norm_mae"),
        ("masked_mse", lambda x: x * float("nan"), "loss_recon nan"),
        ("trajectory_temporal", lambda x: 0 * x, "grad_norm_sampler_attention"),
        ("trajectory_attention", _WrongGradient.apply, "grad_norm_sampler_attention"),
    ],
)
def test_throughput_gate_closes(monkeypatch, capsys, op, change, named):
    break_op(monkeypatch, op, change)
    assert throughput.main(TINY) == 1
    out, err = capsys.readouterr()
    assert "path fast disagrees with the baseline" in err and named in err
    assert err.count("\n") == 1
    assert "clips/s" not in out


def test_keep_going_records_the_wrong_path_and_times_the_others(monkeypatch, capsys, tmp_path):
    file = tmp_path / "record.json"
    break_op(monkeypatch, "masked_mse", lambda x: 1.001 * x)
    arguments = [*TINY, "--steps", "1", "--keep-going", "--json", str(file)]
    assert throughput.main(arguments) == 1
    paths = json.loads(file.read_text())["paths"]
    assert set(paths["reference"]) == set(paths["sdpa"]) == PATH_KEYS
    assert list(paths["fast"]) == ["failed"] and "disagrees" in paths["fast"]["failed"]
    assert "failed path fast disagrees with the baseline" in capsys.readouterr().out


def test_a_path_that_does_not_compile_is_skipped(monkeypatch, tmp_path, capsys):
    def refuse(self, **_):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch.nn.Module, "compile", refuse)
    file = tmp_path / "record.json"
    arguments = [*TINY, "--paths", "reference,compiled", "--steps", "1", "--json", str(file)]
    assert throughput.main(arguments) == 0
    skipped = json.loads(file.read_text())["paths"]["compiled"]
    assert skipped == {"skipped": "torch.compile failed: no compiler"}
    assert "(path compiled)" in capsys.readouterr().out


def test_clips_without_a_decoder(monkeypatch):
    model = load_config(overrides=["model.image_size=32", "masking.ratio=0.5"]).model
    real, source = paths.load_clips(model, 2, 0)
    assert real.shape == (2, 16, 32, 32, 3) and real.dtype == torch.uint8 and "real" in source
    monkeypatch.setitem(sys.modules, "av", None)
    made, source = paths.load_clips(model, 2, 0)
    assert made.shape == real.shape and made.dtype == torch.uint8
    assert "generated moving textures" in source and "av" in source


def test_generated_clips_move_in_some_places_more_than_in_others():
    clips = [
        torch.from_numpy(moving_texture(16, 64, np.random.default_rng(seed))) for seed in (3, 3, 4)
    ]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])
    patches = patchify(clips[2][None], 2, 16)
    energy = motion_energy(patches, 2)
    assert energy.max() > 3 * energy.median() and roughness(patches, 16).min() > 0
    # The pan is by whole pixels: what leaves on one side of a texture enters on the other.
    tile = texture(16, np.random.default_rng(0)).astype(int)
    inside, across = abs(np.diff(tile, axis=0)).mean(), abs(tile[0] - tile[-1]).mean()
    assert across < 3 * inside


def test_gpu_steps_are_timed_in_bursts_whose_first_step_does_not_count(monkeypatch):
    now, order = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, later):
            return later.at - self.at

    def step(name, ms):
        def call():
            order.append(name)
            # The first of a burst starts on an idle device.
            now[0] += ms + (100 if len(order) < 2 or order[-2] != name else 0)

        return call

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    calls = {"a": step("a", 3.0), "b": step("b", 5.0)}
    times = timing.steps_ms(calls, torch.device("cuda"), repeats=6, warmup=2)
    assert times == {"a": [3.0] * 6, "b": [5.0] * 6}
    assert "".join(order) == "aabb" + "aaaaabbbbb" + "aaabbb"


def test_several_batch_sizes_in_one_record(tmp_path):
    file, chart = tmp_path / "record.json", tmp_path / "chart.png"
    arguments = [*TINY, "--batches", "1", "2", "--steps", "1", "--paths", "fast,fast_eager"]
    done = run_script("throughput.py", *arguments, "--json", file, "--plot", chart)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert set(record) == {*RECORD_KEYS, "paths", "batches"}
    assert list(record["batches"]) == ["1", "2"]
    rates = {b: e["paths"]["fast_eager"]["clips_per_s"] for b, e in record["batches"].items()}
    assert record["config"]["batch"] == int(max(rates, key=rates.get))
    assert record["paths"] == record["batches"][str(record["config"]["batch"])]["paths"]
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("throughput", ["--paths", "quick"], "--paths: quick is not one of reference, compiled"),
        ("throughput", ["--batch", "0"], "--batch: 0 must be at least 1"),
        ("throughput", ["--model", "vit_bas"], "did you mean vit_base?"),
        ("throughput", ["model.attention=eager"], "every path sets its own"),
        ("throughput", ["--json", "/no/such/folder/x.json"], "cannot be written"),
        ("throughput", ["--plot", "chart.pdf"], "must end in .png"),
        ("throughput", ["--batches", "2", "0"], "--batches: 0 must be at least 1"),
        ("throughput", ["train.compile=true"], "every path sets its own"),
        ("throughput", [*TINY, "--paths=every4"], "divisible by sampler.learn_every=4"),
        ("ops", ["--op", "softmax"], "--op: softmax is not one of trajectory_attention"),
        ("ops", ["--case", "vit_b"], "--case: vit_b is not one of vit_b_r95"),
        ("ops", ["--impl", "cuda"], "--impl: cuda is not one of reference, torch"),
        ("ops", ["--json", "/no/such/folder/x.json"], "cannot be written"),
        ("profile_step", ["--path", "quick"], "invalid choice"),
    ],
)
def test_bad_arguments_get_one_line(capsys, script, arguments, message):
    module = importlib.import_module(script)
    try:
        code = module.main(["--device", "cpu", *arguments])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert message in err and err.count("\n") == 1


def test_runs_from_a_checkout_with_the_core_packages_only(tmp_path):
    """Neither installed as ``tats_fast`` nor with any optional package."""
    code = f"""
import importlib.abc, runpy, sys
absent = {{"av", "PIL", "rich", "tensorboard", "matplotlib", "deepspeed", "flash_attn", "skvideo"}}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(f).lower()]
sys.meta_path.insert(0, Absent())
sys.path = [p for p in sys.path if "editable" not in p]
sys.argv = ["throughput.py", *{[*TINY, "--steps", "1"]!r}]
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path({str(BENCHMARKS / "throughput.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "generated moving textures" in done.stdout


@pytest.mark.parametrize("first", ["reference", "videomae"])
def test_a_bar_is_as_long_as_its_step(monkeypatch, tmp_path, first):
    """Also where the stages, which come from other steps, add up to something else, and of others'
    code, which has none."""
    record = json.loads((RECORD / "throughput.json").read_text())
    theirs = record["paths"]["fast"] | {"stages_ms": {}}
    ours = {name: path for name, path in record["paths"].items() if name != "fast"}
    record["paths"] = {first: ours.get(first, theirs)} | ours | {"videomae": theirs}
    record["batches"] = {str(batch): {"paths": record["paths"]} for batch in (1, 2, 4)}
    from matplotlib.axes import Axes

    ends, barh = {}, Axes.barh

    def noted(axes, places, widths, height, left, **look):
        ends.update(enumerate(left + widths))
        return barh(axes, places, widths, height, left, **look)

    monkeypatch.setattr(Axes, "barh", noted)
    plots.draw(record, str(tmp_path / "chart.png"))
    steps = [path["step_ms"]["p50"] for path in record["paths"].values()]
    assert [ends[row] for row in range(len(steps))] == pytest.approx(steps)
