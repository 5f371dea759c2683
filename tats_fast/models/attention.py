"""Softmax attention of encoder and decoder, behind one choice of backend.

``auto`` takes the first of these that the machine runs:

- ``flash4``: flash-attn-4, for Hopper and data-centre Blackwell, dense and packed.
- ``flash2``: flash-attn 2, Ampere and newer. SDPA's own flash kernel is a copy of it, but takes no
  fused projection (``attention_fused``).
- ``sdpa``: PyTorch's own. Every device and dtype.
- ``eager``: matrix products and a softmax, the plain form that the others are tested against.

``auto`` leaves both FlashAttentions out where SDPA has cuDNN's kernel for Hopper and Blackwell. On
an H100 that is 1.9 times as fast forward as flash-attn 2 (pytorch issue 142132, d = 128), 1.7 to
2.3 times in training (transformers pull request 48163). flash-attn-4 takes 12% less for the
decoder's 1,568 tokens, forward and backward, but more for the encoder's 78, is no torch operator,
and so makes the compiled step longer: 73.6 ms against 65.3 (docs/benchmarks.md).

Legend: B clips, N tokens, T rows of a packed batch, L longest clip allowed, h heads of d channels.
Strided views of a fused projection need no copy.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tats_fast.kernels.composed import fastest_attention, plain_attention

BACKENDS = ("flash4", "flash2", "sdpa", "eager")


class _Flash(NamedTuple):
    """What a FlashAttention package needs: what ``pip install`` takes, GPUs by ``majors`` of their
    compute capability, heads of at most ``widest`` channels; ``names`` it must export."""

    package: str
    install: str
    module: str
    names: tuple[str, ...]
    majors: range
    gpus: str
    widest: int


_FLASH = {
    "flash4": _Flash(
        package="flash-attn-4",
        install="'tats-fast[flash4]'",
        module="flash_attn.cute",
        names=("flash_attn_func", "flash_attn_varlen_func"),
        majors=range(9, 11),
        gpus="Hopper or data-centre Blackwell (sm_90, sm_100)",
        widest=128,
    ),
    "flash2": _Flash(
        package="flash-attn",
        install="--no-build-isolation 'tats-fast[flash2]'",
        module="flash_attn",
        names=(
            *("flash_attn_func", "flash_attn_varlen_func"),
            *("flash_attn_qkvpacked_func", "flash_attn_varlen_qkvpacked_func"),
        ),
        majors=range(8, 100),
        gpus="Ampere or newer (sm_80)",
        widest=256,
    ),
}


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over all keys of a clip.

    Args:
        q, k, v: (B, N, h, d).
        backend: one of ``BACKENDS``. FlashAttention takes 16-bit CUDA tensors with d in eights; for
            others (fp32 without autocast, say) its backends run SDPA, whose maths is the same.

    Returns:
        (B, N, h, d).
    """
    runs = _runs(backend, q)
    if runs == "flash4":
        return _flash4("flash_attn_func", q, k, v)
    if runs == "flash2":
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, deterministic=_deterministic())
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return _composed(q, k, v, runs).transpose(1, 2)


def attention_packed(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, backend: str
) -> Tensor:
    """``attention`` of clips of different lengths that lie one after another, without padding.

    With offsets [0, 2, 5] rows 0 and 1 attend to each other, and so do rows 2, 3 and 4. Where no
    kernel takes packed rows (CPU, fp32, ``eager``), they are padded to ``longest`` and back.

    Args:
        q, k, v: (T, h, d).
        offsets: (B + 1,) int32 on the device: clip b owns rows offsets[b] to offsets[b + 1]. The
            last is T.
        longest: L, at least every clip's length and known on the host, so that the device is never
            asked. It may be larger than the longest clip.

    Returns:
        (T, h, d).
    """
    runs = _runs(backend, q)
    if runs == "flash4":
        return _flash4(
            "flash_attn_varlen_func",
            *(q, k, v),
            cu_seqlens_q=offsets,
            cu_seqlens_k=offsets,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
        )
    if runs == "flash2":
        from flash_attn import flash_attn_varlen_func

        lengths = (offsets, offsets, longest, longest)
        return flash_attn_varlen_func(q, k, v, *lengths, deterministic=_deterministic())
    if runs == "sdpa" and _flash_takes(q, _FLASH["flash2"].widest) and _sdpa_packs(q.device):
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, offsets, offsets, longest, longest)
    return _padded(q, k, v, offsets, longest, runs)


def attention_fused(qkv: Tensor, backend: str, packing: tuple[Tensor, int] | None = None) -> Tensor:
    """``attention`` of a fused projection (B, N, 3, h, d) -> (B, N, h, d); with ``packing``
    (offsets, longest) ``attention_packed`` of (T, 3, h, d) -> (T, h, d).

    Attention of three views has three gradients, which autograd then stacks: a copy of the whole
    projection per block. flash-attn 2 takes the projection itself and writes one.
    """
    if _runs(backend, qkv) == "flash2":
        from flash_attn import flash_attn_qkvpacked_func, flash_attn_varlen_qkvpacked_func

        if packing is None:
            return flash_attn_qkvpacked_func(qkv, deterministic=_deterministic())
        return flash_attn_varlen_qkvpacked_func(qkv, *packing, deterministic=_deterministic())
    q, k, v = qkv.unbind(-3)
    if packing is None:
        return attention(q, k, v, backend)
    return attention_packed(q, k, v, *packing, backend)


def choose_backend(requested: str, device_type: str) -> str:
    """The backend to run: ``requested``; for ``auto`` the first that works on this device, for
    ``flash`` the first FlashAttention that does.

    Raises:
        ValueError: a requested backend that cannot run here, with the reason and the remedy.
    """
    problem = None
    for name in {"auto": BACKENDS, "flash": tuple(_FLASH)}.get(requested, (requested,)):
        problem = unavailable(name, device_type)
        if problem is None and not (requested == "auto" and name in _FLASH and _sdpa_takes_cudnn()):
            return name
    raise ValueError(f"model.attention={requested}: {problem}")


def unavailable(backend: str, device_type: str) -> str | None:
    """Why a backend cannot run on ``device_type``, in one sentence; None when it can.

    An installed FlashAttention is really imported, because one that was built for another torch is
    found but does not load.
    """
    assert backend in BACKENDS, backend
    if backend not in _FLASH:
        return None
    flash, otherwise = _FLASH[backend], "use model.attention=sdpa"
    if device_type != "cuda":
        return f"FlashAttention runs on CUDA only; {otherwise}"
    # Not find_spec: flash-attn 2 and 4 share the folder flash_attn, and 2 brings an early draft of
    # flash_attn.cute along.
    try:
        version = metadata.version(flash.package)
    except metadata.PackageNotFoundError:
        return f"{flash.package} is not installed; pip install {flash.install} or {otherwise}"
    major, minor = torch.cuda.get_device_capability()
    if major not in flash.majors:
        return f"{flash.package} needs {flash.gpus}, this GPU is sm_{major}{minor}; {otherwise}"
    try:
        module = import_module(flash.module)
        for name in flash.names:
            getattr(module, name)
    except Exception as error:  # a broken binary raises what it likes
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return (
            f"{flash.package} {version} does not load ({reason}); "
            f"reinstall it for torch {torch.__version__} or {otherwise}"
        )
    return None


def packs(backend: str, device_type: str) -> bool:
    """Whether ``attention_packed`` runs 16-bit clips on ``device_type`` without padding them."""
    if backend == "sdpa" and device_type == "cuda":
        return _sdpa_packs(torch.device("cuda"))
    return backend in _FLASH


def _sdpa_takes_cudnn() -> bool:
    """Whether SDPA on this GPU asks cuDNN first: PyTorch 2.13's own condition."""
    major, _ = torch.cuda.get_device_capability()
    return major in (9, 10) and (torch.backends.cudnn.version() or 0) > 91500


def _runs(backend: str, x: Tensor) -> str:
    """``backend``, or ``sdpa`` in place of a FlashAttention whose kernels do not take x."""
    assert backend in BACKENDS, backend
    if backend in _FLASH and not _flash_takes(x, _FLASH[backend].widest):
        return "sdpa"
    return backend


def _flash_takes(x: Tensor, widest: int) -> bool:
    fits = x.shape[-1] % 8 == 0 and x.shape[-1] <= widest
    return fits and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _deterministic() -> bool:
    """FlashAttention adds the queries' gradient with atomics unless told not to."""
    return torch.are_deterministic_algorithms_enabled()


def _flash4(name: str, q: Tensor, k: Tensor, v: Tensor, **lengths: Any) -> Tensor:
    from flash_attn import cute

    function = getattr(cute, name)
    if torch.compiler.is_compiling():
        # Its kernels are no torch operators, and dynamo fails somewhere inside: stay outside.
        function = torch.compiler.disable(function)
    out = function(q, k, v, deterministic=_deterministic(), **lengths)
    return out[0] if isinstance(out, tuple) else out  # b36 returns (output, log-sum-exp)


def _sdpa_packs(device: torch.device) -> bool:
    """Whether the GPU runs the kernel of PyTorch's packed attention, which is flash-attn 2's."""
    return torch.cuda.get_device_properties(device).major in _FLASH["flash2"].majors


def _padded(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, backend: str) -> Tensor:
    """``attention_packed`` on clips padded to (B, L): every row has one place, every place at most
    one row, so rows are moved and never added. Worked out anew for each block: three operations on
    T integers, 1/3000 of a CPU's attention."""
    rows, clips = q.shape[0], offsets.shape[0] - 1
    row = torch.arange(rows, dtype=offsets.dtype, device=q.device)
    clip = torch.searchsorted(offsets, row, right=True) - 1
    place = clip * longest + row - offsets[clip]
    # Padded queries come to nothing but must not see an empty softmax, whose gradient is NaN: they
    # attend to their clip's keys, and in a clip without any to its first, which is zero.
    slot = torch.arange(longest, dtype=offsets.dtype, device=q.device)
    mask = slot < offsets.diff().clamp_min(1)[:, None]  # (B, L)

    def pad(x: Tensor) -> Tensor:
        flat = x.new_zeros(clips * longest, *x.shape[1:]).index_copy_(0, place, x)
        return flat.unflatten(0, (clips, longest)).transpose(1, 2)

    out = _composed(pad(q), pad(k), pad(v), backend, mask[:, None, None])
    return _TakeRows.apply(out.transpose(1, 2).flatten(0, 1), place)


def _composed(q: Tensor, k: Tensor, v: Tensor, backend: str, mask: Tensor | None = None) -> Tensor:
    """Attention of (B, h, N, d) without further packages; ``mask`` (B, 1, 1, N) is true for keys
    that exist."""
    return (fastest_attention if backend == "sdpa" else plain_attention)(q, k, v, mask)


class _TakeRows(torch.autograd.Function):
    """x[rows] for rows that are all different: the gradient is written back, where indexing would
    add it up with atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(0, rows, gradient), None
