"""benchmarks/ops.py: costs against tensors that are there, a gate that closes, the record."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import ops
import plots
import predict
import pytest
import torch
from parts import bench, costs
from parts.ops import cases, gate, report, timing
from project import ROOT

from tats_fast import kernels
from tats_fast.config import load_config
from tats_fast.data.workers import progress
from tats_fast.kernels import dispatch
from tats_fast.pretrain.flops import training_step

BENCHMARKS = ROOT / "benchmarks"
TINY = ("--device", "cpu", "--case", "tiny", "--steps", "2", "--warmup", "0", "--batch", "3")


class Clock:
    """In the place of CUDA's events: each is a millisecond after the one before."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Clock.now += 1.0
        self.at = Clock.now

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.mark.parametrize("loop", [timing.interleaved_ms, timing.steps_ms])
def test_loops_on_a_gpu_show_progress(loop, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(progress, "_SPARSE_EVERY", 0.0)
    gpu = SimpleNamespace(type="cuda")
    times = loop({"a": lambda: None, "b": lambda: None}, gpu, repeats=6, warmup=1)
    assert times == {"a": [1.0] * 6, "b": [1.0] * 6}
    shown = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert shown[-1] in ("6/6", "7/7") and len(shown) >= 3


ENTRY_KEYS = {
    *("fwd_ms", "bwd_ms", "fwd_bwd_ms", "peak_mem_mb", "gbps", "tflops", "roofline"),
    "max_rel_err",
}


def tiny_problem(op, batch=3):
    shape = replace(cases.CASES["tiny"], batch=batch, dtype=torch.float32)
    return cases.Problem(op, shape, torch.device("cpu"), seed=0)


# Ops whose inputs are all read whole; a gather's are read in part.
@pytest.mark.parametrize(
    "op",
    [
        *("trajectory_attention", "trajectory_temporal", "decoder_assemble"),
        *("policy_logprob", "policy_sample"),
    ],
)
def test_counted_bytes_are_those_of_the_tensors(op):
    problem = tiny_problem(op)
    inputs = sum(x.nbytes for x in problem.inputs.values())
    outputs = problem.runner("reference")()
    moved = inputs + sum(out.nbytes for out in outputs)
    counted = costs.op_costs(op, problem.shape)
    assert counted.forward[0].bytes == moved
    # Backward: the inputs it needs, each output's gradient, and the gradients it makes.
    needed = {
        "decoder_assemble": [problem.inputs.get("order")],
        "policy_sample": [problem.inputs.get("logits")],
    }.get(op, problem.inputs.values())
    made = sum(x.nbytes for x in problem.leaves().values())
    seeds = sum(out.nbytes for out in outputs if out.requires_grad)
    assert counted.backward[0].bytes == sum(x.nbytes for x in needed) + seeds + made


def test_counted_bytes_of_what_is_read_in_part():
    problem = tiny_problem("token_gather")  # 3 clips, 18 tokens, 5 visible, C = 32
    (picked,) = problem.runner("reference")()
    index, rows = problem.inputs["index"], min(3 * 5, 18) * 32 * 4
    counted = costs.op_costs("token_gather", problem.shape)
    assert counted.forward[0].bytes == 2 * picked.nbytes + index.nbytes + rows
    whole = problem.inputs["x"].nbytes
    assert counted.backward[0].bytes == picked.nbytes + index.nbytes + whole
    problem = tiny_problem("masked_mse")
    prediction, index = problem.inputs["prediction"], problem.inputs["index"]
    pixels = prediction.numel()
    counted = costs.op_costs("masked_mse", problem.shape)
    read = prediction.nbytes + pixels + index.nbytes
    assert counted.forward[0].bytes == read + 4 * index.numel()
    assert counted.backward[0].bytes == read + 4 * index.numel() + prediction.nbytes


def counted_by_torch(call):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_counted_flops_are_those_of_the_products():
    """PyTorch's own counter on an implementation without recomputation: the reference's spatial
    stage, and a block with joint attention."""
    problem = tiny_problem("trajectory_attention")
    forward = counted_by_torch(problem.runner("reference"))
    counted = costs.op_costs("trajectory_attention", problem.shape)
    assert counted.forward[0].flops == forward

    def both():
        outputs = problem.runner("reference")()
        torch.autograd.grad(outputs, [problem.inputs["qkv"]], [torch.ones_like(o) for o in outputs])

    # All five products of a backward that makes the scores again, where this one keeps them.
    assert counted.backward[0].flops == counted_by_torch(both) - forward + forward // 2

    from tats_fast.models.layers import Block, SelfAttention

    block, x = Block(32, 4.0, SelfAttention(32, 2, "eager")), torch.randn(3, 18, 32)
    counted = costs.block(3, 18, 32, 4.0, 4)
    assert sum(c.flops for c in counted.forward) == counted_by_torch(lambda: block(x))


def test_floors_at_vit_base():
    """By hand at ViT-B, one clip, bf16, on 4.3 TB/s and 790 TFLOP/s."""
    ceiling = costs.Ceilings(4.3e12, 790e12, "test")
    shape = replace(cases.CASES["vit_b_r95"], batch=1)
    forward, _ = costs.op_costs("trajectory_attention", shape).seconds(ceiling)
    assert forward == pytest.approx(4 * 1568**2 * 768 / 790e12)  # by its products
    qkv, y = 3 * 1568 * 768 * 2, 9 * 1568 * 768 * 2
    assert costs.op_costs("trajectory_attention", shape).forward[0].bytes == qkv + y
    _, backward = costs.op_costs("token_gather", shape).seconds(ceiling)
    assert backward == pytest.approx((78 * 768 * 2 + 78 * 8 + 1568 * 768 * 2) / 4.3e12)  # by bytes


def test_step_costs_agree_with_model_flops():
    """The step's products against flops.py: no gradient of the patches, but scores, q^ and z
    again."""
    config = load_config(overrides=["masking.ratio=0.95", "ppo.epochs=1"])
    model, shape = config.model, replace(cases.CASES["vit_b_r95"], batch=1)
    step = costs.step_costs(shape, model.depth, model.decoder_depth, 1)
    products = sum(part.flops for part in step.parts.values())
    tokens, width, narrow = 1568, 768, 384
    again = (model.depth * 78**2 * width + model.decoder_depth * tokens**2 * narrow) * 2
    again += 2 * tokens**2 * width  # the sampler's spatial stage
    again += 2 * tokens * width**2 + 2 * tokens * 12 * 8 * width
    embed = 2 * tokens * 1536 * width
    critic = 3 * (2 * width**2 + 2 * width)
    assert products == training_step(config) + again - embed - critic


@pytest.mark.slow
def test_ops_end_to_end(tmp_path, capsys):
    file, chart = tmp_path / "record.json", tmp_path / "chart.png"
    arguments = [*TINY, "--impl", "reference,torch,triton", "--json", str(file)]
    assert ops.main([*arguments, "--plot", str(chart)]) == 0
    out = capsys.readouterr().out
    record = json.loads(file.read_text())
    assert set(record) == {"hardware", "versions", "commit", "config", "ops", "floors"}
    assert set(record["ops"]) == {*kernels.ops(), "sampler_attention", "sampler_block"}
    for op, by_case in record["ops"].items():
        entries = by_case["tiny"]
        assert list(entries) == ["reference", "torch", "triton"] or "torch" in entries
        assert "interpreter" in entries["triton"]["skipped"]
        theirs = ("token_gather", "decoder_assemble")
        own = op not in (*theirs, "policy_logprob", "policy_sample")
        assert own == ("skipped" not in entries["torch"])
        for entry in entries.values():
            if "skipped" in entry:
                continue
            assert set(entry) == ENTRY_KEYS
            for kind in ("fwd_ms", "bwd_ms", "fwd_bwd_ms"):
                assert 0 < entry[kind]["p20"] <= entry[kind]["p50"] <= entry[kind]["p80"]
            floor = record["floors"][op]["tiny"]
            both = entry["fwd_bwd_ms"]["p50"]
            assert entry["roofline"] == pytest.approx((floor["fwd_ms"] + floor["bwd_ms"]) / both)
            assert entry["gbps"] == pytest.approx(floor["mb"] / both)
            assert 0 <= entry["max_rel_err"] < 1e-4
        assert op in out
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert "target" not in out  # those are for full-size clips


class _WrongGradient(torch.autograd.Function):
    """Identity whose gradient is a thousandth too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.001 * grad


def break_op(monkeypatch, op, change):
    """Let the torch level of ``op`` return something else."""
    right = dispatch._registry[op].get("torch", dispatch._registry[op]["reference"])
    monkeypatch.setitem(dispatch._registry[op], "torch", lambda *args: change(right(*args)))


def first(change):
    """Apply to an op's first output."""
    return lambda out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


@pytest.mark.parametrize(
    ("op", "change", "named"),
    [
        ("trajectory_temporal", first(lambda x: 1.0001 * x), "output 0"),
        ("trajectory_attention", first(_WrongGradient.apply), "the gradient of qkv"),
        ("masked_mse", first(lambda x: x * float("nan")), "output 0"),
        ("token_gather", first(lambda x: torch.cat([x[:-1], 0 * x[-1:]])), "output 0"),
        ("decoder_assemble", first(_WrongGradient.apply), "the gradient of visible"),
        ("policy_sample", lambda out: (*out[:2], out[2].flip(1)), "output 2"),
        ("policy_sample", lambda out: (*out[:2], 0 * out[2]), "output 2"),
        ("policy_logprob", lambda out: (out[0], 1.001 * out[1]), "output 1"),
    ],
)
def test_gate_closes(monkeypatch, capsys, op, change, named):
    break_op(monkeypatch, op, change)
    assert ops.main([*TINY, "--op", op, "--impl", "torch"]) == 1
    out, err = capsys.readouterr()
    assert f"{op}, tiny: torch disagrees with the reference: {named}" in err
    assert err.count("\n") == 1
    assert "fwd+bwd" not in out


@pytest.mark.slow
def test_keep_going_records_what_is_wrong_and_times_the_rest(monkeypatch, capsys, tmp_path):
    def crash(*_):
        raise RuntimeError("out of shared memory\nand more")

    file = tmp_path / "record.json"
    break_op(monkeypatch, "masked_mse", lambda x: 1.001 * x)
    monkeypatch.setitem(dispatch._registry["policy_logprob"], "torch", crash)
    arguments = [*TINY, "--op", "masked_mse,policy_logprob,policy_sample", "--impl", "torch"]
    assert ops.main([*arguments, "--keep-going", "--json", str(file)]) == 1
    recorded = json.loads(file.read_text())["ops"]
    assert "disagrees" in recorded["masked_mse"]["tiny"]["torch"]["failed"]
    assert recorded["policy_logprob"]["tiny"]["torch"] == {"failed": "out of shared memory"}
    assert all(set(by_case["tiny"]["reference"]) == ENTRY_KEYS for by_case in recorded.values())
    assert "failed torch: out of shared memory" in capsys.readouterr().out


def test_gate_sees_a_wrong_op_inside_the_module(monkeypatch, capsys):
    break_op(monkeypatch, "trajectory_temporal", lambda x: 1.001 * x)
    assert ops.main([*TINY, "--op", "sampler_block", "--impl", "torch"]) == 1
    assert "sampler_block, tiny: torch disagrees" in capsys.readouterr().err


def test_order_of_near_ties_is_free():
    """Two tokens whose keys differ by less than rounding may change places; others may not."""
    problem = tiny_problem("policy_sample")
    with torch.no_grad():
        problem.inputs["logits"][:, 1] = problem.inputs["logits"][:, 0]
        problem.inputs["uniform"][:, 1] = problem.inputs["uniform"][:, 0]
    runner = problem.runner("reference")

    def swapped(a, b):
        log_p, entropy, order = runner()
        exchanged = torch.where(order == a, b, torch.where(order == b, a, order))
        return log_p, entropy, exchanged

    judge = gate.Gate(problem)
    judge.check(lambda: swapped(0, 1))
    with pytest.raises(gate.WrongResult, match="output 2"):
        judge.check(lambda: swapped(0, 2))
    assert cases.why_not("policy_sample", "torch", "cpu") == "has no level torch of its own"


def test_module_runs_under_autocast_with_fp32_parameters():
    shape = replace(cases.CASES["tiny"], batch=1, dtype=torch.bfloat16)
    problem = cases.Problem("sampler_attention", shape, torch.device("cpu"), seed=0)
    (out,) = problem.runner("torch")()
    assert out.dtype == torch.bfloat16
    assert {x.dtype for x in problem.module.parameters()} == {torch.float32}
    (exact,) = problem.double().runner("reference")()
    assert exact.dtype == torch.float64


@pytest.mark.slow
def test_compiled_is_measured(tmp_path):
    file = tmp_path / "record.json"
    arguments = [*TINY, "--op", "masked_mse", "--impl", "compiled", "--json", str(file)]
    assert ops.main(arguments) == 0
    entries = json.loads(file.read_text())["ops"]["masked_mse"]["tiny"]
    assert list(entries) == ["reference", "compiled"]
    assert entries["compiled"].get("skipped", "").startswith("torch.compile failed") or (
        set(entries["compiled"]) == ENTRY_KEYS
    )


def test_a_reference_that_does_not_fit_costs_its_column_alone():
    times = {"p20": 1.0, "p50": 2.0, "p80": 3.0}
    entry = {"fwd_ms": times, "bwd_ms": None, "fwd_bwd_ms": times, "gbps": 1.0, "tflops": None}
    entry |= {"roofline": 0.5, "peak_mem_mb": 1.0, "max_rel_err": 0.0}
    entries = {"reference": {"skipped": "out of GPU memory at batch 256"}, "triton": entry}
    text = report.results({"ops": {"masked_mse": {"vit_b_r95": entries}}}, "masked_mse")
    row = next(line.split() for line in text.splitlines() if "triton" in line)
    assert row[2:8] == ["2.000", "-", "1.000", "2.000", "3.000", "-"]
    assert "skipped reference: out of GPU memory" in text


def test_targets_are_judged():

    def record(device, dtype, gpu, times):
        entries = {name: {"fwd_bwd_ms": {"p50": value}} for name, value in times.items()}
        cases = {"vit_b_r95": entries, "vit_s_r95": entries}
        ops = {"sampler_attention": cases, "sampler_block": cases}
        hardware = {"gpu": gpu} if gpu else {}
        return {"config": {"device": device, "dtype": dtype}, "hardware": hardware, "ops": ops}

    lines = report.target_lines(record("cpu", "fp32", None, {"reference": 10, "torch": 5}))
    assert [line.rpartition(": ")[2] for line in lines] == ["missed", "met"]  # 2.5 and 1.7
    times = {"reference": 60, "torch": 30, "compiled": 18, "triton": 12, "triton_compiled": 10}
    lines = report.target_lines(record("cuda", "bf16", "NVIDIA H200", times))
    assert "6.00 x reference, wanted 5.0: met" in lines[0]
    assert "1.80 x torch or compiled, wanted 1.8: met" in lines[1]
    assert not report.target_lines(record("cuda", "fp32", "NVIDIA H200", times))


def test_prediction_is_marked_and_follows_the_formulas(capsys):
    assert predict.main(["--batch", "64"]) == 0
    out = capsys.readouterr().out
    assert out.count("PREDICTED") == 3
    # 40% of 989 TFLOP/s over 276.1 GFLOP per clip.
    row = next(line.split() for line in out.splitlines() if line.startswith("H200  1"))
    assert row[2] == "276" and row[-2] == "1,433"


def test_chart_of_a_record_and_of_something_else(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[1]")
    image = str(tmp_path / "x.png")
    assert plots.main([str(tmp_path / "x.json"), image]) == 2
    assert "no record of ops.py, throughput.py" in capsys.readouterr().err
    assert plots.main([str(tmp_path / "x.json"), "x.pdf"]) == 2
    assert "must end in .png" in capsys.readouterr().err


def test_chart_without_matplotlib_is_refused_before_measuring(monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert ops.main([*TINY, "--plot", "chart.png"]) == 2
    out, err = capsys.readouterr()
    assert "matplotlib is not installed" in err and err.count("\n") == 1 and out == ""


def test_no_script_is_named_like_a_package():
    """A script's folder comes first on sys.path."""
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    packages = {
        *("torch", "triton", "numpy", "einops", "yaml", "pytest", "av", "matplotlib", "kernels"),
        *("transformers", "deepspeed", "flash_attn", "tats_fast", "rich"),
    }
    assert not names & (set(sys.stdlib_module_names) | packages)
