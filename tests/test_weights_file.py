"""Weights as safetensors: what is written is read again, and damage is one sentence."""

from __future__ import annotations

import json
import os
import resource
import threading
import time

import pytest
import torch
from run_checks import assert_identical
from safetensors import safe_open
from safetensors.torch import load_file

from tats_fast.config import ConfigError
from tats_fast.weights_file import VALUES, read_state, write_state, write_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def varied():
    """Tensors of every kind, with memory in common and gaps in it."""
    matrix = torch.randn(6, 5)
    return {
        **{str(kind).replace(".", "_"): torch.randn(3).to(kind) for kind in FLOATS},
        **{str(kind).replace(".", "_"): (torch.arange(3) % 2).to(kind) for kind in OTHERS},
        **{"scalar": torch.tensor(3.5, dtype=torch.bfloat16), "empty": torch.empty(0, 3)},
        **{"tied.one": matrix, "tied.two": matrix, "a.part": matrix[2:4], "turned": matrix.T},
        **{"every_other": matrix[:, ::2], "expanded": matrix[:1].expand(4, 5)},
        "not_finite": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "trained": torch.nn.Parameter(matrix.clone()),
    }


def bits(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), bytes(flat.view(torch.uint8).numpy())


def test_every_tensor_comes_back_bit_for_bit(tmp_path):
    state = {"mae": varied(), "sampler": None, "head": {"bias": torch.ones(2)}}
    write_state(state, tmp_path / "x.safetensors")
    again = read_state(tmp_path / "x.safetensors")
    assert again.keys() == state.keys() and again["sampler"] is None
    for section in ("mae", "head"):
        assert again[section].keys() == state[section].keys()
        for name, tensor in state[section].items():
            assert bits(again[section][name]) == bits(tensor), name


def test_the_order_of_names_does_not_matter(tmp_path):
    tensors = varied()
    write_tensors(tensors, tmp_path / "one")
    write_tensors(dict(reversed(tensors.items())), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_plain_values_come_back(tmp_path):
    values = {
        **{"model": {"width": 12, "mlp_ratio": 8 / 3, "positions": "flat", "nested": {"a": None}}},
        **{"classes": ["jump", "Größe", 'a "name"', ""], "norm_eps": 1e-12, "nothing": {}},
    }
    state = {"classifier": {"head.bias": torch.ones(2)}, **values}
    write_state(state, tmp_path / "x.safetensors")
    assert_identical(read_state(tmp_path / "x.safetensors"), state)


def test_any_program_opens_the_file(tmp_path):
    """With the library alone: flat names, the usual metadata, and no reading before the use."""
    tensors = varied()
    write_state({"mae": tensors, "sampler": None}, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert {name: bits(tensor) for name, tensor in found.items()} == {
        f"mae.{name}": bits(tensor) for name, tensor in tensors.items()
    }
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", VALUES: '{"sampler": null}'}
    header = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0  # so that every tensor begins at a multiple of its element's size


def test_what_is_read_does_not_change_the_file(tmp_path):
    write_state({"mae": {"a": torch.ones(4)}}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    read_state(tmp_path / "x.safetensors")["mae"]["a"].zero_()
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_a_file_can_be_written_anew_from_what_was_read_of_it(tmp_path):
    """Its tensors are mapped, so cutting it off first would end the process."""
    path = tmp_path / "x.safetensors"
    write_state({"mae": {"a": torch.arange(1 << 16), "b": torch.ones(1)}}, path)
    state = read_state(path)
    state["mae"].pop("b")
    write_state(state, path)
    assert torch.equal(read_state(path)["mae"]["a"], torch.arange(1 << 16))
    assert list(tmp_path.iterdir()) == [path]


def test_another_programs_tensors_are_flat(tmp_path):
    write_tensors({"encoder.a": torch.ones(2), "b": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert read_state(tmp_path / "x.safetensors").keys() == {"encoder.a", "b"}


@pytest.mark.parametrize("value", [{1, 2}, {"a": torch.ones(1), "b": 2}, torch.ones(1)])
def test_what_is_neither_tensors_nor_plain_is_a_mistake_of_ours(tmp_path, value):
    with pytest.raises(TypeError):
        write_state({"mae": value}, tmp_path / "x.safetensors")
    with pytest.raises(KeyError):
        write_state({"mae": {"a": torch.ones(1, dtype=torch.complex64)}}, tmp_path / "x")


def test_writing_takes_no_copy_and_leaves_python_to_others(tmp_path):
    """A training goes on meanwhile: no thread waits for it."""
    state = {"mae": {str(n): torch.ones(1 << 22) for n in range(8)}}  # 128 MiB
    ended, longest = threading.Event(), [0.0]

    def other():
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            last, before = time.perf_counter(), last
            longest[0] = max(longest[0], last - before)

    thread = threading.Thread(target=other)
    thread.start()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for _ in range(3):
        write_state(state, tmp_path / "x.safetensors")
    seconds = time.perf_counter() - start
    ended.set()
    thread.join()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 32 << 10  # KiB
    assert longest[0] < max(0.1, seconds / 3)


def test_a_limit_on_files_is_an_error_with_its_reason(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_state({"mae": {"a": torch.ones(1 << 16)}}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def crafted(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(**fields):
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **fields}


def ours(values, **tensors):
    return crafted({"__metadata__": {VALUES: values}, **tensors}, bytes(16))


DAMAGED = {
    **{"empty": b"", "short": b"abc", "noise": bytes(range(256)) * 8},
    **{"pickle": b"\x80\x02}q\x00." * 9, "zip": b"PK\x03\x04" + bytes(100)},
    "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "header longer than the file": (1 << 20).to_bytes(8, "little") + b"{}",
    "no JSON": crafted(b"{nonsense", bytes(16)),
    "deep JSON": crafted(b"[" * 100_000, bytes(16)),
    "cut off": crafted({"a": tensor()}, bytes(8)),
    "grown": crafted({"a": tensor()}, bytes(20)),
    "overlap": crafted({"a": tensor(), "b": tensor(data_offsets=[8, 24])}, bytes(24)),
    "beyond the end": crafted({"a": tensor(data_offsets=[0, 1 << 60])}, bytes(16)),
    "huge shape": crafted({"a": tensor(shape=[1 << 40, 1 << 40])}, bytes(16)),
    "negative": crafted({"a": tensor(shape=[-4])}, bytes(16)),
    "another dtype": crafted({"a": tensor(dtype="OBJECT")}, bytes(16)),
    "values are no JSON": ours("{", **{"mae.a": tensor()}),
    "values are a number": ours("3", **{"mae.a": tensor()}),
    "values are deep": ours("[" * 100_000, **{"mae.a": tensor()}),
    "a section is a number": ours('{"mae": 3}', **{"mae.a": tensor()}),
    "a section is a list": ours('{"mae": [1]}', **{"mae.a": tensor()}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_and_hostile_files_are_one_sentence(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(ConfigError, match="damaged, cannot be read") as raised:
        read_state(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="missing"):
        read_state(tmp_path / "model.safetensors")
    os.mkdir(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_state(tmp_path / "model.safetensors")
