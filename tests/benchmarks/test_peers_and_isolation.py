"""Paths and ops in processes of their own, and the paths that are not ours."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import ops
import pytest
import throughput
import torch
from parts import bench
from parts.isolate import first_failure, is_cuda_error
from parts.ops import isolated as isolated_ops
from parts.step import isolated, measure, paths
from scripts import run_script

from tats_fast.config import ConfigError

TINY = (
    *("--device", "cpu", "--batch", "2", "--steps", "2", "--image-size", "32", "--frames", "8"),
    *("--mask-ratio", "0.75", "model.patch_size=8", "model.width=32", "model.depth=1"),
    *("model.heads=2", "model.decoder_width=16", "model.decoder_depth=1"),
    "model.decoder_heads=2",
)
STAND_IN = """
import torch
from timm.models.layers import to_2tuple, trunc_normal_
from timm.models.registry import register_model


class PretrainVisionTransformer(torch.nn.Module):
    def __init__(self, img_size, tubelet_size, patch_size, decoder_num_classes, mask_ratio, **_):
        super().__init__()
        self.per_frame = (img_size // patch_size) ** 2
        self.size, self.tubelet, self.ratio = patch_size, tubelet_size, mask_ratio
        self.head = torch.nn.Linear(3, decoder_num_classes)
        self.scores = torch.nn.Parameter(torch.zeros(self.per_frame))

    def forward(self, x):
        batch, _, frames, _, _ = x.shape
        count = self.per_frame * frames // self.tubelet
        p = self.scores.repeat(frames // self.tubelet).softmax(0).expand(batch, count)
        visible = torch.multinomial(p, int(count * (1 - self.ratio)))
        mask = torch.ones(batch, count, dtype=torch.bool).scatter(1, visible, False)
        tokens = x.mean((2, 3, 4))[:, None].expand(batch, count, 3)
        return self.head(tokens), p, visible, mask
"""
LOST = RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")


def small_config(*more):
    options = throughput.make_parser().parse_intermixed_args([*TINY, *more])
    return throughput.read_config(options, 2)


@pytest.fixture
def clips():
    return paths.load_clips(small_config().model, 2, 0)[0]


def test_videomae_sees_as_many_tokens_and_learns(clips):
    pytest.importorskip("transformers")
    config = small_config("optim.base_lr=0.1")
    peer = paths.make_contender(paths.PATHS["videomae"], config, torch.device("cpu"), clips)
    mask = peer._mask(2)
    assert mask.sum(1).tolist() == [48, 48] and not torch.equal(mask[0], mask[1])
    assert peer.model.config._attn_implementation == "sdpa"
    peer.take_first_step()
    assert 0.5 < peer.first["loss_recon"] < 1.5  # of normalised pixels, whose variance is 1
    for _ in range(15):
        last = peer.step()["loss_recon"]
    assert last < peer.first["loss_recon"]
    assert measure.gflop_per_clip(peer.config) < measure.gflop_per_clip(config)


def test_other_masks_are_exempt_from_the_gate_but_not_from_being_finite():
    first, baseline = {"loss_recon": 1.0}, {"loss_recon": 2.0, "loss_policy": 0.0}
    assert measure.differs("videomae", first, baseline, "fp32") is None
    assert "nan" in measure.differs("random", {"loss_recon": float("nan")}, baseline, "fp32")
    assert "expected 2" in measure.differs("fast", {**baseline, **first}, baseline, "fp32")


def test_a_missing_peer_is_skipped_by_name(monkeypatch, clips):
    def absent(model):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr("parts.step.peer.videomae", absent)
    cpu = torch.device("cpu")
    ran, others = measure.enter(["fast", "videomae"], small_config(), cpu, clips)
    assert list(ran) == ["fast"]
    assert others == {"videomae": {"skipped": "transformers is not installed"}}


def test_adamae_without_its_code_is_skipped_by_name(monkeypatch, clips):
    monkeypatch.delenv("ADAMAE_CODE", raising=False)
    cpu = torch.device("cpu")
    ran, others = measure.enter(["adamae", "adamae_code"], small_config(), cpu, clips)
    assert list(ran) == ["adamae"]
    skipped = "a clone of AdaMAE (ADAMAE_CODE=FOLDER) is not installed"
    assert others == {"adamae_code": {"skipped": skipped}}


def test_adamae_code_is_timed_with_a_model_that_draws_for_itself(monkeypatch, clips, tmp_path):
    """A stand-in for the clone: its module's names, arguments and outputs, on one linear layer."""
    folder = tmp_path / "models" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "vit.py").write_text(STAND_IN)
    monkeypatch.setenv("ADAMAE_CODE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "models")]:
        monkeypatch.delitem(sys.modules, name)
    config = small_config("optim.base_lr=0.1")
    path = paths.PATHS["adamae_code"]
    peer = paths.make_contender(path, config, torch.device("cpu"), clips)
    paths.make_contender(path, config, torch.device("cpu"), clips)  # as for a second batch size
    assert peer.config.sampler.attention == "joint"  # its FLOP, whatever our sampler's
    peer.take_first_step()
    assert 0.5 < peer.first["loss_recon"] < 1.5
    for _ in range(15):
        last = peer.step()["loss_recon"]
    assert last < peer.first["loss_recon"]
    before = peer.model.scores.detach().clone()
    peer.step()
    assert not torch.equal(before, peer.model.scores)  # the draw's own loss reaches it


def test_isolated_paths_are_compared_across_processes(tmp_path):
    file = tmp_path / "record.json"
    arguments = [*TINY, "--steps", "1", "--paths", "reference,fast,random", "--isolate", "60"]
    done = run_script("throughput.py", *arguments, "--json", file)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert list(record["paths"]) == ["reference", "fast", "random"]
    first = {name: how["first_step"] for name, how in record["config"]["paths"].items()}
    assert first["fast"]["loss_recon"] == pytest.approx(first["reference"]["loss_recon"], rel=1e-4)
    assert [how["compared"] for how in record["config"]["paths"].values()] == [True, True, False]


def test_what_one_path_breaks_does_not_reach_the_next(monkeypatch, tmp_path):
    """The gate across processes, a crash, and the record after every path."""
    entry = {"clips_per_s": 1.0, "step_ms": {"p50": 1.0}}
    losses = {"reference": 1.0, "sdpa": 1.5, "compiled": None, "fast": 1.0}
    seen = []

    def process(options, config, names, device, peak, found):
        for name in names:
            if losses[name] is None:
                return "CUDA error: misaligned address"
            found(
                name, dict(entry), {"paths": {name: {"first_step": {"loss_recon": losses[name]}}}}
            )
        return None

    monkeypatch.setattr(isolated, "_process", process)
    monkeypatch.setattr(isolated, "results", lambda *_: "")
    options = SimpleNamespace(keep_going=True, peak_tflops=None)
    save, cpu = lambda measured: seen.append(list(measured[1])), torch.device("cpu")
    _, done = isolated.measure_isolated(options, small_config(), list(losses), cpu, save)
    assert done["reference"] == done["fast"] == entry
    assert "disagrees" in done["sdpa"]["failed"] and "misaligned" in done["compiled"]["failed"]
    assert seen == [list(losses)[: n + 1] for n in range(4)]


def test_a_process_that_ends_is_followed_by_another(monkeypatch, tmp_path):
    """Real processes: the first dies within its second path, the next takes what is left."""
    script = tmp_path / "throughput.py"
    script.write_text(
        "import json, os, sys, time\n"
        "paths = next(a for a in sys.argv if a.startswith('--paths='))[8:].split(',')\n"
        "file = next(a for a in sys.argv if a.startswith('--json='))[7:]\n"
        "record = {'config': {'paths': {}}, 'paths': {}}\n"
        "for name in paths:\n"
        "    if name == 'compiled': os._exit(139)\n"
        "    if name == 'random': time.sleep(60)\n"
        "    record['paths'][name] = {'step_ms': {'p50': 1.0}, 'clips_per_s': 1.0}\n"
        "    record['config']['paths'][name] = {'first_step': {'loss_recon': 1.0}}\n"
        "    open(file, 'w').write(json.dumps(record))\n"
        "    time.sleep(1)\n"
    )
    monkeypatch.setattr("parts.isolate.HERE", tmp_path)
    monkeypatch.setattr(isolated, "results", lambda *_: "")
    arguments = [*TINY, "--keep-going", "--isolate", "4", "--peak-tflops", "1"]
    options = throughput.make_parser().parse_intermixed_args(arguments)
    names, saved = ["reference", "compiled", "fast", "random", "sdpa"], []
    _, done = isolated.measure_isolated(
        options, small_config(), names, torch.device("cpu"), lambda m: saved.append(len(m[1]))
    )
    assert list(done) == names and saved == [1, 2, 3, 4, 5]
    assert done["compiled"] == {"failed": "exit code 139"}
    assert done["random"] == {"failed": "ended after 4 s"}
    assert all("step_ms" in done[name] for name in ("reference", "fast", "sdpa"))


def test_without_isolation_the_first_failure_is_clear(monkeypatch, capsys):
    make = measure.make_contender

    def breaks(path, *arguments):
        if path is paths.PATHS["sdpa"]:
            raise LOST
        return make(path, *arguments)

    monkeypatch.setattr(measure, "make_contender", breaks)
    assert throughput.main([*TINY, "--keep-going"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "path sdpa: CUDA error: an illegal memory access" in err
    assert "--isolate" in err


def test_an_op_goes_on_without_the_implementation_that_broke(monkeypatch):
    asked = []

    def child(options, names, implementations, limit, file):
        asked.append((tuple(names), implementations))
        ran = {"ops": {}, "floors": {}, "config": {"ceilings": "top"}}
        for name in names:
            if name == "b" and "triton" in implementations:
                ran["ops"][name] = {"tiny": {"triton": {"failed": "CUDA error"}}}
                ran["lost"] = {"op": name, "implementation": "triton"}
                return ran, "b, tiny, triton: CUDA error"
            ran["ops"][name] = {"tiny": {i: {"fwd_bwd_ms": 1} for i in implementations}}
            ran["floors"][name] = {"tiny": {}}
        return ran, None

    monkeypatch.setattr(isolated_ops, "_one", child)
    kinds = ("reference", "triton")
    options = SimpleNamespace(ops="abc", implementations=kinds, cases=("tiny",), isolate=60.0)
    options.json = None
    record = {"ops": {}, "floors": {}, "config": {}}
    saved = []
    right, first = isolated_ops.measure_isolated(record, options, lambda: saved.append(1))
    assert not right and first == "b, tiny, triton: CUDA error"
    assert asked == [(tuple("abc"), kinds), (("b",), ("reference",)), (("c",), kinds)]
    assert set(record["ops"]["c"]["tiny"]) == set(kinds) and len(saved) == 3
    b = record["ops"]["b"]["tiny"]
    assert b == {"triton": {"failed": "CUDA error"}, "reference": {"fwd_bwd_ms": 1}}


def test_an_op_that_loses_the_context_says_which_implementation(monkeypatch, tmp_path, capsys):
    def breaks(self, name, gate):
        raise LOST

    monkeypatch.setattr(ops.Measurement, "_enter", breaks)
    file = tmp_path / "ops.json"
    arguments = ["--device", "cpu", "--case", "tiny", "--op", "masked_mse", "--impl", "torch"]
    assert ops.main([*arguments, "--keep-going", "--json", str(file)]) == 1
    assert "masked_mse, tiny, reference: CUDA error" in capsys.readouterr().err
    lost = json.loads(file.read_text())["lost"]
    assert lost == {"op": "masked_mse", "implementation": "reference"}


def test_the_first_cuda_error_is_what_a_failure_is_named_after():
    text = "Traceback\nAcceleratorError: CUDA error: an illegal memory access\nCompile with X\n"
    assert first_failure(text) == "AcceleratorError: CUDA error: an illegal memory access"
    assert first_failure("warning\nerror: no GPU\nbye") == "no GPU"
    assert first_failure("  ValueError: 3\nat end") == "ValueError: 3"
    assert first_failure("") is None
    assert is_cuda_error(LOST) and not is_cuda_error("out of memory")


def test_tables_go_between_the_markers(tmp_path):
    page, text = tmp_path / "page.md", "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    page.write_text(text)
    bench.put_between(str(page), "x", "new")
    assert page.read_text() == text.replace("old", "new")
    for bad in ("no markers", text + text, "<!-- x -->"):
        page.write_text(bad)
        with pytest.raises(ConfigError, match=r"page\.md: one pair of <!-- x --> and <!-- /x -->"):
            bench.put_between(str(page), "x", "new")
    with pytest.raises(ConfigError, match=r"--update gone\.md: No such file"):
        bench.put_between("gone.md", "x", "new")
