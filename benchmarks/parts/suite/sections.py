"""The sections of the GPU suite: what each runs, within which time, and what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent.parent
SWEEP = (16, 32, 64, 128)
COMPARED_BATCH = 64
"""All paths side by side: the largest of ``SWEEP`` at which the reference fits an 80 GB card."""
TINY = (
    *("--image-size", "32", "--frames", "8", "--mask-ratio", "0.75", "model.patch_size=8"),
    *("model.width=32", "model.depth=1", "model.heads=2", "model.decoder_width=16"),
    *("model.decoder_depth=1", "model.decoder_heads=2"),
)

Command = Callable[[Path, float], list[str]]


@dataclass(frozen=True)
class Section:
    """One part of the suite, a process of its own.

    ``command`` gets the record folder and the seconds granted; ``limit`` is the most it gets,
    ``reserve`` what sections before it must leave; ``helpers`` are started beside it and ended
    with it: they only fill caches. ``missing`` is why it cannot run.
    """

    name: str
    command: Command
    limit: float
    reserve: float
    helpers: tuple[list[str], ...] = ()
    missing: str | None = None


def script(line: str, *more: object) -> list[str]:
    """Command line of a script of benchmarks/: its name and options, then ``more`` as it is."""
    name, *options = line.split()
    return [sys.executable, str(HERE / name), *options, *map(str, more)]


def _lack(*names: str) -> str | None:
    absent = [name for name in names if not _found(name)]
    return f"{', '.join(absent)} is not installed" if absent else None


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def full_sections() -> list[Section]:
    """On a CUDA GPU, ViT-B 16 x 224 x 224; limits in seconds."""

    def compared(name: str, epochs: int) -> Command:
        line = (
            f"throughput.py --device cuda --inner-epochs {epochs} --steps 10 --keep-going --batch"
        )
        paths = "reference,sdpa,compiled,fast,fast_eager"
        return lambda out, _: script(
            line, batch_to_compare(out / "sweep.json"), "--paths", paths, "--json", out / name
        )

    # While the tests compile kernels and time nothing, two processes fill torch.compile's cache.
    warmers = (
        script("throughput.py --device cuda --inner-epochs 1 --paths compiled,fast --steps 1 "
               "--warmup 0 --batch", COMPARED_BATCH),
        script("ops.py --device cuda --impl compiled,triton_compiled --case vit_b_r95 --steps 1 "
               "--warmup 0"),
    )  # fmt: skip
    sweep = "throughput.py --device cuda --inner-epochs 1 --paths fast_eager --steps 5 --batches"
    no_triton = _lack("triton")
    return [
        Section(
            "environment",
            lambda out, _: script("environment.py --device cuda --json", out / "environment.json"),
            **{"limit": 40, "reserve": 20},
        ),
        Section(
            "tests",
            lambda out, limit: script(
                "gpu_tests.py --limit", limit - 8, "--json", out / "tests.json"
            ),
            **{"limit": 130, "reserve": 60, "helpers": warmers, "missing": _lack("pytest")},
        ),
        Section(
            "sweep",
            lambda out, _: script(sweep, *SWEEP, "--json", out / "sweep.json"),
            **{"limit": 70, "reserve": 40},
        ),
        Section("throughput K=1", compared("k1.json", 1), limit=130, reserve=80),
        Section(
            "ops",
            lambda out, _: script(
                "ops.py --device cuda --case vit_b_r95,vit_b_r85 --keep-going --json",
                out / "ops.json",
            ),
            **{"limit": 130, "reserve": 60},
        ),
        Section("throughput K=2", compared("k2.json", 2), limit=90, reserve=40),
        Section(
            "decoding",
            lambda out, _: script(
                "decode.py --training --workers 12 --clips 128 --repeats 2 --json",
                out / "decode.json",
            ),
            **{"limit": 90, "reserve": 40, "missing": _lack("av", "nvidia.dali")},
        ),
        Section(
            "profile",
            lambda out, _: script(
                "profile_step.py --device cuda --inner-epochs 1 --batch",
                batch_to_compare(out / "sweep.json"),
            ),
            **{"limit": 50, "reserve": 30},
        ),
        Section(
            "tuning",
            lambda out, limit: script(
                "tune_kernels.py --limit", limit - 8, "--json", out / "tuning.json"
            ),
            **{"limit": 110, "reserve": 50, "missing": no_triton},
        ),
        Section(
            "resources",
            lambda out, _: script("kernel_resources.py"),
            **{"limit": 60, "reserve": 10, "missing": no_triton},
        ),
    ]


def quick_sections() -> list[Section]:
    """The same sections at tiny sizes on the CPU, for tests; what needs a GPU is skipped."""
    no_gpu = "needs a CUDA GPU"

    def quick(name: str, line: str, file: str | None, *more: str) -> Section:
        return Section(
            name,
            lambda out, _: script(line, *(["--json", out / file] if file else []), *more),
            **{"limit": 60, "reserve": 10},
        )

    def skipped(name: str, reason: str) -> Section:
        return Section(name, lambda out, _: [], limit=1, reserve=0, missing=reason)

    step = "throughput.py --device cpu --steps 1 --warmup 0"
    compared = f"{step} --paths reference,fast --batch 2 --inner-epochs"
    ops = "ops.py --device cpu --case tiny --impl torch --steps 1 --warmup 0"
    environment = "environment.py --device cpu --seconds 0.1"
    return [
        quick("environment", environment, "environment.json"),
        skipped("tests", no_gpu),
        quick("sweep", f"{step} --batches 1 2 --paths fast_eager", "sweep.json", *TINY),
        quick("throughput K=1", f"{compared} 1", "k1.json", *TINY),
        quick("ops", ops, "ops.json"),
        quick("throughput K=2", f"{compared} 2", "k2.json", *TINY),
        skipped("decoding", "has a --quick of its own"),
        quick("profile", "profile_step.py --device cpu --warmup 1 --batch 1", None, *TINY),
        skipped("tuning", no_gpu),
        skipped("resources", "not at tiny sizes"),
    ]


def batch_to_compare(sweep: Path) -> int:
    """``COMPARED_BATCH``, or less where the sweep found that too large; the smallest if there was
    no sweep."""
    try:
        batches = json.loads(sweep.read_text())["batches"]
    except (OSError, ValueError, KeyError):
        return SWEEP[0]
    ran = [int(b) for b, entry in batches.items()
           if any("clips_per_s" in path for path in entry["paths"].values())]  # fmt: skip
    return max((batch for batch in ran if batch <= COMPARED_BATCH), default=SWEEP[0])
