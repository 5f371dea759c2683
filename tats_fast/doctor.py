"""What this machine can run: devices, attention, kernels, decoding; and why not the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

from tats_fast import kernels
from tats_fast.data.dali import dali_problem
from tats_fast.data.loader import resolved_backend
from tats_fast.data.video import decode_window
from tats_fast.engine.precision import cpu_multiplies_bf16
from tats_fast.models.attention import BACKENDS, choose_backend, packs, unavailable
from tats_fast.version import __version__

_FRAME = Path(__file__).parent / "data" / "doctor_frame.mp4"


def report_lines() -> list[str]:
    """The report, one finding per line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = choose_backend("auto", device)
    unequal = "packed" if packs(attention, device) else "padded to one length"
    return [
        f"tats-fast {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        "",
        "devices",
        *_devices(),
        "",
        f"attention (on {device})",
        *(_line(name, unavailable(name, device)) for name in BACKENDS),
        f"  model.attention=auto takes {attention}; clips of different lengths are {unequal}",
        "",
        f"kernels (on {device})",
        _line("Triton", kernels.triton_problem(device)),
        *_kernels(device),
        "",
        "decoding",
        _pyav(),
        _line("DALI", dali_problem()),
        f"  data.backend=auto takes {resolved_backend('auto', device)}",
        "",
        "distributed",
        *_distributed(),
        "",
        "logs and pages",
        _package("tensorboard", "TensorBoard", "pip install tensorboard"),
        _package("matplotlib", "matplotlib (pictures)", "pip install matplotlib"),
        _package("pillow", "Pillow (pictures)", "pip install pillow"),
    ]


def _pyav() -> str:
    problem = decoding_problem()
    return _package("av", "PyAV", "pip install av") if problem is None else _line("PyAV", problem)


def decoding_problem() -> str | None:
    """Why PyAV cannot be used here, or None: it is tried on a frame that comes with the package."""
    try:
        frame = decode_window(str(_FRAME), num_frames=1, stride=1, size=32)[0]
    except ModuleNotFoundError:
        return "not installed; pip install av"
    except Exception as error:  # such as a TypeError, where a release knows other options
        return f"decoding a frame failed: {' '.join(f'{type(error).__name__}: {error}'.split())}"
    # Its left half is black, its right half white.
    dark, bright = frame[:, :16].max(), frame[:, 16:].min()
    return None if dark < 64 and bright > 192 else "decoding a frame gave a wrong picture"


def _devices() -> list[str]:
    precision = "bf16" if cpu_multiplies_bf16() else "fp32"
    threads = torch.get_num_threads()
    lines = [f"  cpu: yes, {threads} threads, train.precision=auto takes {precision}"]
    if not torch.cuda.is_available():
        build = "this build of torch has no CUDA" if torch.version.cuda is None else "none found"
        return [*lines, f"  cuda: no, {build}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        lines.append(
            f"  cuda:{index}: yes, {properties.name}, {memory:.0f} GiB, "
            f"sm_{properties.major}{properties.minor}, CUDA {torch.version.cuda}"
        )
    return lines


def _kernels(device: str) -> list[str]:
    try:
        level = kernels.requested_level()
        chosen = [f"    {op}: {kernels.resolved_level(op, device)}" for op in kernels.ops()]
        return [f"  TATS_KERNELS={level} takes", *chosen]
    except ValueError as error:
        return [f"  none: {error}"]


def _distributed() -> list[str]:
    import torch.distributed as dist

    checks = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    lines = [
        _line(name, None if dist.is_available() and check() else "not in this build of torch")
        for name, check in checks.items()
    ]
    return [*lines, _package("deepspeed", "DeepSpeed", "pip install 'tats-fast[deepspeed]'")]


def _package(module: str, name: str, remedy: str) -> str:
    try:
        version = importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return _line(name, f"not installed; {remedy}")
    return f"  {name}: yes, {version}"


def _line(name: str, problem: str | None) -> str:
    return f"  {name}: {'yes' if problem is None else f'no, {problem}'}"
