"""How a run's modules are executed: what is compiled, and when."""

from __future__ import annotations

import pytest
import torch

from tats_fast.config.schema import TrainConfig
from tats_fast.models.execution import blocks, prepare_blocks
from tats_fast.models.restore import build_models


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_gpu"), [(None, False, True), (True, True, True), (False, False, False)]
)
def test_compiling_is_the_default_on_a_gpu_alone(asked, on_cpu, on_gpu):
    train = TrainConfig(compile=asked)
    assert (train.compiles("cpu"), train.compiles("cuda")) == (on_cpu, on_gpu)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocks_and_what_lies_between_them_are_compiled(device, tiny_config, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f.__name__) or f)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    mae, sampler = build_models(tiny_config(), "cpu", 0.0)
    prepare_blocks(TrainConfig(), torch.device(device), True, mae, sampler)
    names = sorted(part for part in compiled if isinstance(part, str))
    modules = {part for part in compiled if not isinstance(part, str)}
    if device == "cpu":
        assert not compiled
    else:
        assert names == ["predict", "score"]
        assert modules == {*blocks(mae, sampler), mae.encoder.embed}
