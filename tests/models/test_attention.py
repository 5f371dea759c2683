"""Attention: every backend computes the same, and packed clips equal clips on their own. The tests
marked ``gpu`` run the real FlashAttention packages."""

from __future__ import annotations

import pytest
import torch
from attention_checks import (
    EXACT,
    HEADS,
    LENGTHS,
    clip_by_clip,
    formula,
    offsets_of,
    output_and_gradient,
    projection,
    within_twice,
)
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tats_fast.models.attention import (
    BACKENDS,
    attention,
    attention_fused,
    attention_packed,
    unavailable,
)


@pytest.mark.parametrize("dim", [8, 5], ids=["d8", "d5"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_equals_the_formula(backend, dim):
    """On the CPU the FlashAttention backends run SDPA."""
    for dtype, tolerance in EXACT.items():
        qkv = projection(2, 7, dim=dim, dtype=dtype)
        cotangent = torch.randn(2, 7, HEADS, dim)
        actual = output_and_gradient(lambda x: attention(*x.unbind(2), backend), qkv, cotangent)
        expected = output_and_gradient(
            lambda x: torch.stack([formula(*clip.unbind(1)) for clip in x]), qkv, cotangent
        )
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_on_the_cpu_is_as_close_as_sdpa(backend):
    """Its plain matrix products round the scores too."""
    qkv, lengths = projection(100, dim=16, dtype=torch.bfloat16).detach(), [30, 1, 69]

    def sdpa(*clip: Tensor) -> Tensor:
        return scaled_dot_product_attention(*(x.transpose(0, 1) for x in clip)).transpose(0, 1)

    parts = qkv.unbind(1)
    out = attention(*qkv[None].unbind(2), backend)[0]
    assert out.dtype == torch.bfloat16
    assert within_twice(out, sdpa(*parts), formula(*qkv.double().unbind(1)))
    out = attention_packed(*parts, offsets_of(lengths), 80, backend)
    assert out.dtype == torch.bfloat16
    exact = clip_by_clip(*qkv.double().unbind(1), lengths)
    assert within_twice(out, clip_by_clip(*parts, lengths, sdpa), exact)


@pytest.mark.parametrize("spare", [0, 3], ids=["tight", "loose"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_packed_equals_clip_by_clip(backend, lengths, spare):
    for dtype, tolerance in EXACT.items():
        qkv = projection(sum(lengths), dim=5, dtype=dtype)
        cotangent = torch.randn(sum(lengths), HEADS, 5)
        bound = max(lengths) + spare

        def packed(x, bound=bound):
            return attention_packed(*x.unbind(1), offsets_of(lengths), bound, backend)

        actual = output_and_gradient(packed, qkv, cotangent)
        expected = output_and_gradient(
            lambda x: clip_by_clip(*x.unbind(1), lengths), qkv, cotangent
        )
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_an_empty_clip_does_no_harm(backend):
    qkv, lengths = projection(4), [0, 3, 0, 1]
    cotangent = torch.randn(4, HEADS, 8)
    with torch.autograd.detect_anomaly(check_nan=True):
        actual = output_and_gradient(
            lambda x: attention_packed(*x.unbind(1), offsets_of(lengths), 5, backend),
            qkv,
            cotangent,
        )
    expected = output_and_gradient(lambda x: clip_by_clip(*x.unbind(1), [3, 1]), qkv, cotangent)
    torch.testing.assert_close(actual, expected, **EXACT[torch.float32])


def test_padding_moves_rows_and_never_adds_them():
    """Adding rows up takes atomics on a GPU, whose order changes from run to run."""
    out = attention_packed(*projection(6).unbind(1), offsets_of([2, 4]), 4, "eager")
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        todo += [before for before, _ in node.next_functions if before is not None]
    assert "_TakeRowsBackward" in names
    moved = {name for name in names if name.startswith(("Index", "Gather", "Take"))}
    assert moved == {"IndexCopyBackward0"}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_fused_equals_its_views(backend):
    qkv, offsets = projection(9), offsets_of([2, 7])
    expected = attention_packed(*qkv.unbind(1), offsets, 7, backend)
    torch.testing.assert_close(attention_fused(qkv, backend, (offsets, 7)), expected)
    expected = attention(*qkv[None].unbind(2), backend)
    torch.testing.assert_close(attention_fused(qkv[None], backend), expected)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_compiles_into_one_graph(backend):
    """No host sync and no shape that depends on the data: either would break the graph."""
    lengths = [2, 1, 6]

    def both(qkv: Tensor, offsets: Tensor) -> Tensor:
        return attention_fused(qkv, backend, (offsets, 8)) + attention_fused(qkv[None], backend)[0]

    qkv, cotangent = projection(sum(lengths)), torch.randn(sum(lengths), HEADS, 8)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=False)
    expected = output_and_gradient(lambda x: both(x, offsets_of(lengths)), qkv, cotangent)
    actual = output_and_gradient(lambda x: compiled(x, offsets_of(lengths)), qkv, cotangent)
    torch.testing.assert_close(actual, expected)
    # The same graph serves other lengths.
    other = output_and_gradient(lambda x: compiled(x, offsets_of([4, 4, 1])), qkv, cotangent)
    expected = output_and_gradient(lambda x: both(x, offsets_of([4, 4, 1])), qkv, cotangent)
    torch.testing.assert_close(other, expected)


def on_gpu(backend: str) -> None:
    """Skip where ``backend`` cannot run on a real GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    problem = unavailable(backend, "cuda")
    if problem is not None:
        pytest.skip(problem)


def assert_as_close_as_sdpa(function, sdpa, qkv: Tensor, cotangent: Tensor) -> None:
    """Output and gradient within twice the distance of PyTorch's SDPA, in the same dtype, from
    SDPA in fp32 (of fp32, in fp64); plus the dtype's rounding."""
    wide = torch.float64 if qkv.dtype == torch.float32 else torch.float32
    exact = output_and_gradient(sdpa, qkv.detach().to(wide).requires_grad_(), cotangent)
    theirs = output_and_gradient(sdpa, qkv, cotangent)
    ours = output_and_gradient(function, qkv, cotangent)
    for x, y, reference in zip(ours, theirs, exact, strict=True):
        assert within_twice(x, y, reference)


HALF = [
    (backend, dtype)
    for backend in ("flash4", "flash2", "sdpa")
    for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 32, 12])
@pytest.mark.parametrize(("backend", "dtype"), HALF, ids=str)
def test_dense_on_the_gpu(backend, dim, dtype):
    on_gpu(backend)
    qkv = projection(2, 196, dim=dim, dtype=dtype, device="cuda")
    cotangent = torch.randn(2, 196, HEADS, dim, device="cuda")

    def sdpa(x):
        q, k, v = (part.transpose(1, 2) for part in x.unbind(2))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    for function in (
        lambda x: attention(*x.unbind(2), backend),
        lambda x: attention_fused(x, backend),
    ):
        assert_as_close_as_sdpa(function, sdpa, qkv, cotangent)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 12])
@pytest.mark.parametrize("lengths", [[43, 78, 20], [156, 1, 300]], ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype"), [*HALF, ("sdpa", torch.float32), ("eager", torch.float32)], ids=str
)
def test_packed_on_the_gpu(backend, lengths, dim, dtype):
    on_gpu(backend)
    qkv = projection(sum(lengths), dim=dim, dtype=dtype, device="cuda")
    cotangent = torch.randn(sum(lengths), HEADS, dim, device="cuda")
    offsets, bound = offsets_of(lengths, "cuda"), max(lengths) + 5

    def sdpa(x):
        def one(*clip):
            q, k, v = (part.transpose(0, 1)[None] for part in clip)
            return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)

        return clip_by_clip(*x.unbind(1), lengths, one)

    for function in (
        lambda x: attention_packed(*x.unbind(1), offsets, bound, backend),
        lambda x: attention_fused(x, backend, (offsets, bound)),
    ):
        assert_as_close_as_sdpa(function, sdpa, qkv, cotangent)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")  # the kernels are built by now
        try:
            output_and_gradient(function, qkv, cotangent)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash2", "sdpa"])
def test_compiles_on_the_gpu(backend):
    on_gpu(backend)
    lengths = [43, 78, 20]
    qkv = projection(sum(lengths), dim=64, dtype=torch.bfloat16, device="cuda")
    cotangent = torch.randn(sum(lengths), HEADS, 64, device="cuda")
    packing = (offsets_of(lengths, "cuda"), 80)

    def both(x):
        return attention_fused(x, backend, packing) + attention_fused(x[None], backend)[0]

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(
        output_and_gradient(compiled, qkv, cotangent),
        output_and_gradient(both, qkv, cotangent),
        rtol=2e-2,
        atol=2e-2,
    )
