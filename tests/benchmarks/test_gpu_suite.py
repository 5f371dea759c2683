"""benchmarks/gpu_suite.py: budgets, isolation of failures, the record, and a quick run."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import tarfile
import time

import gpu_suite
import pytest
import torch
import tune_kernels
from parts.suite import sections, summary
from parts.suite.sections import Section
from scripts import run_script

from tats_fast.kernels import dispatch


@pytest.fixture
def python_line(tmp_path):
    """Maker of scripts, as a section names them, from a line of Python."""
    numbers = itertools.count()

    def write(code):
        file = tmp_path / f"script_{next(numbers)}.py"
        file.write_text(code)
        return str(file)

    return write


def test_a_section_that_fails_or_hangs_does_not_stop_the_others(python_line, tmp_path):
    mark = tmp_path / "child_finished"
    child = ["sh", "-c", f"sleep 9; touch {mark}"]
    hang = f"import subprocess, time; print('begun', flush=True); subprocess.Popen({child})"
    start = time.monotonic()
    sections = [
        Section("good", 20, 1, python_line("print('fine')")),
        Section("bad", 20, 1, python_line("print('why it failed'); raise SystemExit(3)")),
        Section("hangs", 5.5, 1, python_line(f"{hang}; time.sleep(60)")),
        Section("absent", 20, 1, python_line("raise SystemExit(1)"), missing="needs a CUDA GPU"),
        Section("last", 20, 1, python_line("print('still here')")),
    ]
    outcomes = gpu_suite.run_sections(sections, tmp_path, 60)
    assert [o.status for o in outcomes] == ["ok", "failed", "timed out", "skipped", "ok"]
    assert time.monotonic() - start < 30
    assert outcomes[1].detail == "exit code 3; why it failed"
    assert "begun" in outcomes[2].output and 5 < outcomes[2].seconds < 9
    assert outcomes[3].detail == "needs a CUDA GPU"
    assert "still here" in outcomes[4].output
    # The whole process group ended, what the section had started included.
    time.sleep(max(0.0, 10 - outcomes[2].seconds))
    assert not mark.exists()
    assert "begun" in (tmp_path / "hangs.log").read_text()


def test_a_command_that_cannot_even_be_made_is_a_failure(tmp_path):
    outcome = gpu_suite.run_section(Section("broken", 10, 1, "ops.py {batches}"), tmp_path, 10)
    assert outcome.status == "failed" and "batches" in outcome.detail


def test_budget_keeps_the_later_sections_reserves(monkeypatch, tmp_path):
    granted = {}

    def pretend(part, out, seconds):
        granted[part.name] = seconds
        now[0] += spent[part.name]
        return gpu_suite.Outcome(part.name, "ok", spent[part.name])

    now = [100.0]
    monkeypatch.setattr(gpu_suite.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gpu_suite, "run_section", pretend)
    spent = {"a": 60, "b": 10, "c": 29, "d": 1}
    sections = [
        Section(name, limit, reserve)
        for name, limit, reserve in (("a", 90, 10), ("b", 50, 20), ("c", 90, 20), ("d", 90, 10))
    ]
    outcomes = gpu_suite.run_sections(sections, tmp_path, 100)
    # a: 100 less 50 kept; b: 40 left less 30; c: 30 left less 10; d: nothing but a second.
    assert granted == {"a": 50, "b": 20, "c": 20}
    assert outcomes[3].status == "skipped" and outcomes[3].detail == "no time left"


def test_helpers_end_with_their_section(python_line, tmp_path):
    mark = tmp_path / "helper_finished"
    helper = python_line(f"import time; time.sleep(8); open({str(mark)!r}, 'w')")
    part = Section("tests", 20, 1, python_line("print('done')"), helpers=(helper,))
    outcome = gpu_suite.run_section(part, tmp_path, 4.0)
    assert outcome.status == "ok" and outcome.seconds < 8
    time.sleep(8.5 - outcome.seconds)
    assert not mark.exists()


def test_settings_that_would_change_the_measurement_are_hidden(python_line, monkeypatch, tmp_path):
    monkeypatch.setenv("TATS_KERNELS", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = "import os; print([n for n in ('TATS_KERNELS', 'TRITON_INTERPRET') if n in os.environ])"
    outcome = gpu_suite.run_section(Section("x", 20, 1, python_line(code)), tmp_path, 20)
    assert outcome.output.strip() == "[]"


def throughput_record(epochs, rates, batch=64):
    def path(rate):
        step = dict.fromkeys(("p20", "p50", "p80"), 1e3 * batch / rate)
        timed = {"clips_per_s": rate, "step_ms": step, "stages_ms": {"embed": 1.0}, "loss": 1.0}
        mfu = {"mfu": rate / 2800, "mfu_data_sheet": rate / 3500}
        return {**timed, **mfu, "tflops": rate / 4, "peak_mem_mb": 230.0 * batch}

    settings = {"attention": "sdpa", "kernels": {"masked_mse": "torch"}, "compile": False}
    settings["compared"] = True
    config = {"batch": batch, "inner_epochs": epochs, "paths": dict.fromkeys(rates, settings)}
    config |= {"peak_tflops": 790.0, "peak_source": "measured here"}
    return {"config": config, "paths": {name: path(rate) for name, rate in rates.items()}}


def test_summary_judges_every_target(tmp_path):
    rates = {"reference": 300.0, "compiled": 800.0, "fast": 1400.0, "fast_eager": 1000.0}
    rates |= {"random": 2400.0, "videomae": 1200.0}
    k1 = throughput_record(1, rates)
    k1["paths"]["sdpa"] = {"skipped": "out of GPU memory at batch 64"}

    def swept(batch):
        rates = {"clips_per_s": 1000.0 + batch, "mfu": 0.3, "mfu_data_sheet": 0.2}
        return {**rates, "peak_mem_mb": 230.0 * batch}

    files = {
        "k1.json": k1,
        "k2.json": throughput_record(2, {"fast": 900.0}),
        "sweep.json": {
            "batches": {str(b): {"paths": {"fast": swept(b)}} for b in (128, 256, 32)},
            **{"config": {}, "paths": {"fast": {}}},
        },
        "tests.json": {
            **{"passed": 5, "failed": 1, "skipped": 2, "not_run": 0, "seconds": 3.0},
            "failures": {"tests/test_x.py::test_y": "line\nAssertionError: 1 != 2"},
        },
    }
    out, raw = tmp_path / "out", tmp_path / "raw"
    out.mkdir(), raw.mkdir()
    for name, content in files.items():
        (raw / name).write_text(json.dumps(content))
    outcomes = [
        {"name": "profile", "status": "ok", "detail": "", "output": "a kernel"},
        {"name": "ops", "status": "failed", "detail": "exit code 1; a|b", "output": "disagrees"},
    ]
    outcomes = [{**outcome, "seconds": 9.0} for outcome in outcomes]
    text = summary.write_record(out, raw, outcomes, "command", 321.0, quick=False)
    verdicts = {line.split(":")[0]: line.rpartition(": ")[2] for line in text.splitlines()[1:]}
    assert verdicts == {
        "target whole step over reference, K=1": "met",  # 4.67 of 3
        "target whole step over compiled, K=1": "met",  # 1.75 of 1.6
        "target clips/s, K=1, best batch": "met",
        "target MFU of the data sheet": "met",  # 1400 / 3500 = 40%
        "target MFU of the measured product": "-",
        "target random masks, ours over videomae": "-",
        "target random masks, ours over videomae_compiled": "-",
        "target activations per clip": "met",  # 230 MiB = 0.241 GB
        "target data wait with DALI": "-",
    }
    assert "ours over videomae: wanted -, 2.00 x" in text
    assert "measured product: wanted -, 50" in text
    written = {path.name for path in out.iterdir()}
    names = {"summary.md", "throughput.json", "log.txt", "tests.json", "record.tar.gz"}
    assert written == names
    with tarfile.open(out / "record.tar.gz") as tar:
        assert {"raw/k1.json", "raw/sweep.json", "summary.md"} < set(tar.getnames())
    record = json.loads((out / "throughput.json").read_text())
    assert record["config"]["inner_epochs"] == 1 and record["k2"]["config"]["inner_epochs"] == 2
    assert list(record["batches"]) == ["32", "64", "128", "256"]
    page = (out / "summary.md").read_text()
    assert "a kernel" in page
    assert "| 256 | fast |" in summary.page([out]) and "5 passed" in summary.page([out])
    assert "5 passed, 1 failed" in page and "AssertionError: 1 != 2" in page
    assert "out of GPU memory" in page and "a/b" in page and "321 s in all" in page
    assert "disagrees" in (out / "log.txt").read_text()


def test_summary_of_a_run_in_which_nothing_worked(tmp_path):
    outcomes = [{"name": "sweep", "status": "failed", "seconds": 1.0, "detail": "", "output": ""}]
    out, raw = tmp_path / "out", tmp_path / "raw"
    out.mkdir(), raw.mkdir()
    text = summary.write_record(out, raw, outcomes, "command", 1.0, quick=False)
    assert text.count("not measured") == 9
    assert {p.name for p in out.iterdir()} == {"summary.md", "log.txt", "record.tar.gz"}


def test_the_record_is_written_after_every_section(monkeypatch, tmp_path):
    """A machine that goes away in the second section leaves the first one's results."""
    lines = {"one": "print('fine')", "two": "raise SystemExit(3)"}
    for name, code in lines.items():
        (tmp_path / f"{name}.py").write_text(code)
    parts = [Section(name, 20, 1, str(tmp_path / f"{name}.py")) for name in lines]
    monkeypatch.setattr(gpu_suite, "quick_sections", lambda stage: parts)
    seen = []

    def written(out, raw, outcomes, *_):
        seen.append([(o["name"], o["status"]) for o in outcomes])
        return ""

    monkeypatch.setattr(gpu_suite, "write_record", written)
    assert gpu_suite.main(["--quick", "--out", str(tmp_path / "out")]) == 1
    both = [("one", "ok"), ("two", "failed")]
    assert seen == [both[:1], both, both]


TESTS = """
import time
import pytest
@pytest.mark.parametrize("i", range(5))
def test_good(i): assert i < 4, "five is too many"
@pytest.mark.skip(reason="no")
def test_skipped(): pass
def test_hangs(): time.sleep(60 if HANG else 0)
"""


@pytest.mark.parametrize("hang", [False, True])
def test_gpu_tests_are_counted_even_where_time_runs_out(tmp_path, hang):
    (tmp_path / "test_some.py").write_text(f"HANG = {hang}\n{TESTS}")
    (tmp_path / "test_unimportable.py").write_text("import nothing_of_that_name")
    options = ["--workers", 2, "--limit", 15 if hang else 60, "--mark", "not gpu"]
    options += ["--json", tmp_path / "tests.json", "--files", *sorted(tmp_path.glob("test_*.py"))]
    done = run_script("gpu_tests.py", *options, timeout=90)
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "tests.json").read_text())
    failures = " ".join(result.pop("failures"))
    assert "test_good[4]" in failures and "test_unimportable" in failures
    seconds = result.pop("seconds")
    assert result == {"passed": 4 + (not hang), "failed": 2, "skipped": 1, "not_run": int(hang)}
    assert seconds < 25
    assert "five is too many" in done.stdout


LOSES_ITS_CONTEXT = """
import os, pytest
def test_before(): pass
def test_breaks(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_after(): pass
def test_kills_its_process(): os.kill(os.getpid(), 9)
def test_last(): pass
"""


@pytest.mark.slow
def test_gpu_tests_go_on_after_a_cuda_error(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(LOSES_ITS_CONTEXT)
    options = ["--workers", 1, "--limit", 100, "--mark", "not gpu", "--files", file]
    done = run_script("gpu_tests.py", *options, "--json", tmp_path / "tests.json", timeout=120)
    assert done.returncode == 1
    result = json.loads((tmp_path / "tests.json").read_text())
    assert [result[kind] for kind in ("passed", "failed", "not_run")] == [3, 2, 0]
    first, second = result["failures"].items()
    assert "test_breaks" in first[0] and "illegal memory access" in first[1]
    assert "test_kills" in second[0] and second[1] == "its process died"


def test_without_a_gpu_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main([]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "no CUDA GPU" in err and out == ""
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(["--quick", "--only", "nonsense"])
    assert "--only: nonsense is not one of environment, tests" in capsys.readouterr().err
    assert gpu_suite.main(["--quick", "--out", "/proc/nowhere"]) == 2
    assert "--out /proc/nowhere" in capsys.readouterr().err


def test_full_sections_fit_the_time(tmp_path):
    """Reserves fit the total, every script exists, and names say what --only takes."""
    for stage, limit in sections.STAGE_SECONDS.items():
        staged, quick = sections.full_sections(stage), sections.quick_sections(stage)
        assert sum(part.reserve for part in staged) <= limit
        assert [part.name for part in staged] == [part.name for part in quick]
    full = sections.full_sections(None)
    names = [part.name for part in full]
    assert names[:2] == ["environment", "tests"] and len(names) == len(set(names))
    # What fills caches may run beside no section that times.
    assert {part.name for part in full if part.helpers} == {"tests", "compiling"}
    for part in full:
        own = part.command(tmp_path, 60.0)[len(part.prefix) :]
        for command in (own, *map(sections.script, part.helpers)):
            script = command[1]
            assert os.path.isfile(script), script
            # The options are ones the script knows: --help is after them all.
            parser = importlib.import_module(os.path.basename(script)[:-3])
            if hasattr(parser, "make_parser"):
                parser.make_parser().parse_intermixed_args(command[2:])


@pytest.mark.slow
def test_quick_suite_end_to_end(tmp_path):
    out = tmp_path / "record"
    done = run_script("gpu_suite.py", "--quick", "--out", out, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("tests", "tuning"):
        assert f"{name}: skipped, 0 s: needs a CUDA GPU" in done.stdout
    written = {path.name for path in out.iterdir()}
    assert written == {
        *("summary.md", "environment.json", "ops.json", "throughput.json", "log.txt"),
        "record.tar.gz",
    }
    assert sum(path.stat().st_size for path in out.iterdir()) < 500_000
    record = json.loads((out / "throughput.json").read_text())
    assert record["config"]["inner_epochs"] == 1 and record["k2"]["config"]["inner_epochs"] == 2
    assert list(record["batches"]) == ["1", "2"]
    assert list(record["paths"]) == ["reference", "fast", "videomae", "random"]
    summary = (out / "summary.md").read_text()
    for name in ("environment", "sweep", "throughput K=1", "ops", "profile", "pretraining"):
        assert f"| {name} | ok |" in summary
    assert "no result" in summary and "## Targets" not in summary


def test_every_tunable_kernel_is_reached_by_its_ops():
    """Without a GPU: a forced candidate shows up in what the op would launch."""
    pytest.importorskip("triton")
    from tats_fast.kernels.fused.launch import recording

    options = tune_kernels.make_parser().parse_args(["--case", "vit_b_r95"])
    benches = functools.cache(lambda op: tune_kernels.Bench(op, options, 1, torch.device("cpu")))
    tunables = {tunable.name: (tunable, ops) for tunable, ops in tune_kernels.tunables()}
    assert len(tunables) >= 6
    for tunable, ops in tunables.values():
        assert ops, tunable.name
        assert str(tunable.candidates[tunable.chosen[0]])
        for candidate in tunable.candidates:
            with dispatch.assume_gpu(), recording(90) as launches:
                for op in ops:
                    tune_kernels.forcing(tunable.name, candidate, benches(op).both)()
            sizes = dict(candidate.sizes)
            assert any(
                {name: launch.arguments.get(name) for name in sizes} == sizes
                and (launch.num_warps, launch.num_stages)
                == (candidate.num_warps, candidate.num_stages)
                for launch in launches
            ), f"{tunable.name} {candidate}"
