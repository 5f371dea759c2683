"""The choice of an attention backend, and what it is called with.

flash-attn cannot be installed without a GPU, so stand-ins with its signatures take its place.
"""

from __future__ import annotations

import inspect
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import pytest
import torch
from attention_checks import (
    HEADS,
    clip_by_clip,
    offsets_of,
    projection,
)

from tats_fast import doctor
from tats_fast.models import attention as module
from tats_fast.models.attention import (
    attention,
    attention_fused,
    attention_packed,
    choose_backend,
    packs,
    unavailable,
)

# What the packages published, parameter by parameter: a wrong name or order of ours fails to bind.
FA2_REST = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic"


FA4_REST = "softmax_scale causal window_size learnable_sink softcap num_splits pack_gqa"


OFFSETS = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"


SIGNATURES = {
    "flash_attn": {  # 2.8.3
        "flash_attn_func": f"q k v | {FA2_REST} return_attn_probs",
        "flash_attn_varlen_func": f"q k v {OFFSETS} | {FA2_REST} return_attn_probs block_table",
        "flash_attn_qkvpacked_func": f"qkv | {FA2_REST} return_attn_probs",
        "flash_attn_varlen_qkvpacked_func": f"qkv cu_seqlens max_seqlen | {FA2_REST}",
    },
    "flash_attn.cute": {  # flash-attn-4 4.0.0b36
        "flash_attn_func": f"q k v | qv gather_kv_indices {FA4_REST} deterministic",
        "flash_attn_varlen_func": f"q k v | qv {OFFSETS} min_seqlen_k seqused_q seqused_k "
        f"gather_kv_indices page_table {FA4_REST} deterministic",
    },
}


def stand_in(package: str, name: str, calls: list):
    """A function with a published signature that notes its arguments and computes with SDPA."""
    required, optional = (part.split() for part in SIGNATURES[package][name].split("|"))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [
            *(inspect.Parameter(n, kind) for n in required),
            *(inspect.Parameter(n, kind, default=None) for n in optional),
        ]
    )

    def function(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        calls.append((package, name, given))
        q, k, v = given["qkv"].unbind(-3) if "qkv" in given else [given[n] for n in "qkv"]
        offsets = given.get("cu_seqlens", given.get("cu_seqlens_q"))
        if offsets is None:
            out = attention(q, k, v, "sdpa")
        else:
            one = lambda *clip: attention(*(x[None] for x in clip), "sdpa")[0]  # noqa: E731
            out = clip_by_clip(q, k, v, offsets.diff().tolist(), one)
        return (out, None) if package == "flash_attn.cute" else out

    return function


@pytest.fixture
def calls(monkeypatch):
    """Both packages in place, taking the CPU's bf16 for CUDA's; the list of (package, function,
    arguments) that they were called with."""
    noted: list[tuple[str, str, dict]] = []
    for package, names in SIGNATURES.items():
        fake = ModuleType(package)
        for name in names:
            setattr(fake, name, stand_in(package, name, noted))
        monkeypatch.setitem(sys.modules, package, fake)
    sys.modules["flash_attn"].cute = sys.modules["flash_attn.cute"]
    monkeypatch.setattr(module, "_flash_takes", lambda x, widest: x.dtype == torch.bfloat16)
    return noted


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize(
    ("backend", "package"), [("flash2", "flash_attn"), ("flash4", "flash_attn.cute")]
)
def test_flash_attention_gets_what_it_asks_for(monkeypatch, calls, backend, package, deterministic):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    qkv, offsets = projection(9, dtype=torch.bfloat16).detach(), offsets_of([2, 7])
    q, k, v = qkv.unbind(1)
    tolerance = {"rtol": 2e-2, "atol": 2e-2}

    out = attention(q[None], k[None], v[None], backend)
    torch.testing.assert_close(out, attention(q[None], k[None], v[None], "eager"), **tolerance)
    out = attention_packed(q, k, v, offsets, 8, backend)
    expected = attention_packed(q, k, v, offsets, 8, "eager")
    torch.testing.assert_close(out, expected, **tolerance)
    assert [(made, name) for made, name, _ in calls] == [
        (package, "flash_attn_func"),
        (package, "flash_attn_varlen_func"),
    ]
    for (_, _, given), expected in zip(calls, ((1, 9, HEADS, 8), (9, HEADS, 8)), strict=True):
        for name, x in zip("qkv", (q, k, v), strict=True):
            assert given[name].shape == expected
            assert given[name].data_ptr() == x.data_ptr()  # a view, no copy
        assert given["deterministic"] is deterministic
    packed = calls[1][2]
    assert packed["cu_seqlens_q"] is offsets is packed["cu_seqlens_k"]
    assert offsets.dtype == torch.int32
    assert packed["max_seqlen_q"] == packed["max_seqlen_k"] == 8


def test_flash_attn_2_takes_the_projection_whole(calls):
    qkv, offsets = projection(9, dtype=torch.bfloat16), offsets_of([2, 7])
    attention_fused(qkv[None], "flash2")
    attention_fused(qkv, "flash2", (offsets, 8))
    (_, dense, given), (_, packed, given_packed) = calls
    assert (dense, packed) == ("flash_attn_qkvpacked_func", "flash_attn_varlen_qkvpacked_func")
    assert given["qkv"].shape == (1, 9, 3, HEADS, 8)
    assert given_packed["qkv"] is qkv
    assert given_packed["cu_seqlens"] is offsets
    assert given_packed["max_seqlen"] == 8
    calls.clear()
    attention_fused(qkv, "flash4", (offsets, 8))
    assert [name for _, name, _ in calls] == ["flash_attn_varlen_func"]


def test_flash_backends_leave_fp32_to_sdpa(calls):
    qkv = projection(9)
    for backend in ("flash2", "flash4"):
        attention_fused(qkv[None], backend)
        attention_fused(qkv, backend, (offsets_of([2, 7]), 8))
    assert not calls


@pytest.mark.parametrize(
    ("is_cuda", "dtype", "dim", "takes"),
    [
        (True, torch.bfloat16, 64, True),
        (True, torch.float16, 128, True),
        (False, torch.bfloat16, 64, False),
        (True, torch.float32, 64, False),
        (True, torch.bfloat16, 12, False),
        (True, torch.bfloat16, 136, False),
    ],
)
def test_which_tensors_flash_attention_takes(is_cuda, dtype, dim, takes):
    x = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 4, 2, dim))
    assert module._flash_takes(x, 128) is takes


def test_compiling_around_flash_attention(calls):
    """flash-attn 2 is traced (its kernels are operators); flash-attn-4 must not be entered."""
    qkv = projection(1, 9, dtype=torch.bfloat16).detach()
    expected = attention_fused(qkv, "sdpa").cos()
    inside = []

    def entered(*args, **kwargs):
        inside.append(torch.compiler.is_compiling())
        return stand_in("flash_attn.cute", "flash_attn_func", calls)(*args, **kwargs)

    sys.modules["flash_attn.cute"].flash_attn_func = entered
    broken = torch.compile(lambda x: attention_fused(x, "flash4").cos(), backend="aot_eager")
    torch.testing.assert_close(broken(qkv), expected)
    torch.testing.assert_close(broken(qkv), expected)
    assert inside == [False, False]

    def plain(qkv, deterministic):
        return attention(*qkv.unbind(2), "sdpa")

    sys.modules["flash_attn"].flash_attn_qkvpacked_func = plain
    whole = torch.compile(
        lambda x: attention_fused(x, "flash2").cos(), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(whole(qkv), expected)


def test_sdpa_packs_where_pytorch_can(monkeypatch):
    """Positional arguments: the order of these seven is the same from torch 2.10 to 2.13."""
    noted = []

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None):
        noted.append((cu_seq_q, cu_seq_k, max_q, max_k))
        return query

    fake = ModuleType("torch.nn.attention.varlen")
    fake.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    monkeypatch.setattr(module, "_flash_takes", lambda x, widest: x.dtype == torch.bfloat16)
    gpu = SimpleNamespace(major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    half, full = projection(9, dtype=torch.bfloat16), projection(9)
    offsets = offsets_of([2, 7])
    for qkv in (half, full):
        attention_packed(*qkv.unbind(1), offsets, 8, "sdpa")
    assert noted == [(offsets, offsets, 8, 8)]
    assert packs("sdpa", "cuda")
    assert packs("flash2", "cuda")
    assert not packs("sdpa", "cpu")
    assert not packs("eager", "cuda")
    gpu.major = 7
    assert not packs("sdpa", "cuda")


def test_pytorch_s_packed_attention_has_the_order_we_use():
    from torch.nn.attention.varlen import varlen_attn

    assert list(inspect.signature(varlen_attn).parameters)[:7] == [
        *("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
    ]


TWO, FOUR = "flash-attn", "flash-attn-4"


@pytest.fixture
def machine(monkeypatch, calls):
    """Factory of machines: a GPU, cuDNN's version, and which flash-attn packages it has."""

    def make(capability=(8, 0), packages=(), cudnn=91900) -> None:
        def version(package: str) -> str:
            if package in packages:
                return "1.2.3"
            raise metadata.PackageNotFoundError(package)

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)

    return make


@pytest.mark.parametrize(
    ("capability", "packages", "cudnn", "auto", "flash"),
    [
        ((8, 0), (), 91900, "sdpa", None),
        ((8, 0), (TWO,), 91900, "flash2", "flash2"),
        ((8, 9), (TWO, FOUR), 91900, "flash2", "flash2"),
        ((9, 0), (TWO, FOUR), 91900, "sdpa", "flash4"),
        ((9, 0), (TWO, FOUR), 91002, "flash4", "flash4"),
        ((10, 0), (FOUR,), None, "flash4", "flash4"),
        ((9, 0), (TWO,), 91900, "sdpa", "flash2"),
        ((9, 0), (TWO,), 91002, "flash2", "flash2"),
        ((9, 0), (TWO,), None, "flash2", "flash2"),
        ((12, 0), (TWO, FOUR), 91900, "flash2", "flash2"),
        ((7, 5), (TWO, FOUR), 91900, "sdpa", None),
    ],
)
def test_choice_on_cuda(machine, capability, packages, cudnn, auto, flash):
    machine(capability, packages, cudnn)
    assert choose_backend("auto", "cuda") == auto
    assert choose_backend("sdpa", "cuda") == "sdpa"
    if flash is not None:
        assert choose_backend("flash", "cuda") == flash
    else:
        with pytest.raises(ValueError, match=r"^model\.attention=flash: flash-attn "):
            choose_backend("flash", "cuda")


def test_choice_on_the_cpu_asks_nobody(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", None)
    assert choose_backend("auto", "cpu") == "sdpa"
    for name in ("sdpa", "eager"):
        assert choose_backend(name, "cpu") == name
    for name in ("flash", "flash2", "flash4"):
        with pytest.raises(
            ValueError, match=rf"^model\.attention={name}: FlashAttention runs on CU"
        ):
            choose_backend(name, "cpu")


def test_reasons(machine, calls):
    machine((8, 6))
    assert unavailable("flash2", "cuda") == (
        "flash-attn is not installed; pip install --no-build-isolation 'tats-fast[flash2]' "
        "or use model.attention=sdpa"
    )
    assert "pip install 'tats-fast[flash4]'" in unavailable("flash4", "cuda")
    machine((8, 6), (FOUR,))
    assert unavailable("flash4", "cuda") == (
        "flash-attn-4 needs Hopper or data-centre Blackwell (sm_90, sm_100), this GPU is sm_86; "
        "use model.attention=sdpa"
    )
    machine((7, 0), (TWO,))
    assert "needs Ampere or newer (sm_80), this GPU is sm_70" in unavailable("flash2", "cuda")
    machine((8, 0), (TWO,))
    assert unavailable("flash2", "cuda") is None
    del sys.modules["flash_attn"].flash_attn_varlen_func
    reason = unavailable("flash2", "cuda")
    assert reason.startswith("flash-attn 1.2.3 does not load (AttributeError: ")
    assert reason.endswith(
        f"reinstall it for torch {torch.__version__} or use model.attention=sdpa"
    )
    assert choose_backend("auto", "cuda") == "sdpa"
    sys.modules["flash_attn"] = None  # the import itself fails
    assert "does not load (ModuleNotFoundError: " in unavailable("flash2", "cuda")


def test_doctor_names_every_backend():
    text = "\n".join(doctor.report_lines())
    for part in ("  flash4: ", "  flash2: ", "  sdpa: yes", "  eager: yes", "attention=auto takes"):
        assert part in text
    assert "clips of different lengths are pa" in text
