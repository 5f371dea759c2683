"""The sections of the GPU suite: what each runs, within which time, and what it needs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from parts.bench import installed

HERE = Path(__file__).resolve().parent.parent.parent
SWEEP = (16, 32, 64, 128)
COMPARED_BATCH = 64
"""All paths side by side: the largest of ``SWEEP`` at which the reference fits an 80 GB card."""
TINY = (
    "--image-size 32 --frames 8 --mask-ratio 0.75 model.patch_size=8 model.width=32 model.depth=1 "
    "model.heads=2 model.decoder_width=16 model.decoder_depth=1 model.decoder_heads=2"
)
SAVING_SECONDS = 8
"""What a script that writes as it goes is told to leave of its time."""


@dataclass(frozen=True)
class Section:
    """One part of the suite, a process of its own."""

    name: str
    limit: float
    """The most seconds it gets."""
    reserve: float
    """Seconds that the sections before it must leave."""
    line: str = ""
    """A script of benchmarks/ and its options. ``{out}`` is the record folder, ``{seconds}`` what
    the script may use, ``{batch}`` the batch size at which all paths fit."""
    helpers: tuple[str, ...] = ()
    """Lines of scripts started beside it and ended with it: they only fill caches."""
    missing: str | None = None
    """Why it cannot run."""

    def command(self, out: Path, granted: float) -> list[str]:
        """Its command line, for ``granted`` seconds."""
        batch = batch_to_compare(out / "sweep.json")
        return script(self.line, out=out, seconds=granted - SAVING_SECONDS, batch=batch)


def script(line: str, **values: object) -> list[str]:
    """The command that ``line`` stands for; a filled-in value stays one word."""
    name, *options = (word.format(**values) for word in line.split())
    return [sys.executable, str(HERE / name), *options]


def _lack(*modules: str) -> str | None:
    absent = [module for module in modules if not installed(module)]
    return f"{', '.join(absent)} is not installed" if absent else None


def full_sections() -> list[Section]:
    """On a CUDA GPU, ViT-B 16 x 224 x 224; limits in seconds."""
    step = "throughput.py --device cuda --inner-epochs"
    ops = "ops.py --device cuda --case"
    compared = "--steps 10 --keep-going --batch {batch} --json {out}/"
    compared = f"--paths reference,sdpa,compiled,fast,fast_eager {compared}"
    sizes = " ".join(map(str, SWEEP))
    # While the tests compile kernels and time nothing, two processes fill torch.compile's cache.
    warmers = (
        f"{step} 1 --paths compiled,fast --steps 1 --warmup 0 --batch {COMPARED_BATCH}",
        f"{ops} vit_b_r95 --impl compiled,triton_compiled --steps 1 --warmup 0",
    )
    environment = "environment.py --device cuda --json {out}/environment.json"
    tests = "gpu_tests.py --limit {seconds} --json {out}/tests.json"
    sweep = f"{step} 1 --paths fast_eager --steps 5 --batches {sizes} --json {{out}}/sweep.json"
    every_op = f"{ops} vit_b_r95,vit_b_r85 --keep-going --json {{out}}/ops.json"
    decoding = "decode.py --training --workers 12 --clips 128 --repeats 2 --json {out}/decode.json"
    profile = "profile_step.py --device cuda --inner-epochs 1 --batch {batch}"
    tuning = "tune_kernels.py --limit {seconds} --json {out}/tuning.json"
    no_decoder, no_triton = _lack("av", "nvidia.dali"), _lack("triton")
    return [
        Section("environment", 40, 20, environment),
        Section("tests", 130, 60, tests, helpers=warmers, missing=_lack("pytest")),
        Section("sweep", 70, 40, sweep),
        Section("throughput K=1", 130, 80, f"{step} 1 {compared}k1.json"),
        Section("ops", 130, 60, every_op),
        Section("throughput K=2", 90, 40, f"{step} 2 {compared}k2.json"),
        Section("decoding", 90, 40, decoding, missing=no_decoder),
        Section("profile", 50, 30, profile),
        Section("tuning", 110, 50, tuning, missing=no_triton),
        Section("resources", 60, 10, "kernel_resources.py", missing=no_triton),
    ]


def quick_sections() -> list[Section]:
    """The same sections at tiny sizes on the CPU, for tests; what needs a GPU is skipped."""
    step = f"throughput.py {TINY} --device cpu --steps 1 --warmup 0 --json {{out}}/"
    compared = "--paths reference,fast --batch 2 --inner-epochs"
    lines = {
        "environment": "environment.py --device cpu --seconds 0.1 --json {out}/environment.json",
        "sweep": f"{step}sweep.json --batches 1 2 --paths fast_eager",
        "throughput K=1": f"{step}k1.json {compared} 1",
        "ops": "ops.py --device cpu --case tiny --impl torch --steps 1 --warmup 0 "
        "--json {out}/ops.json",
        "throughput K=2": f"{step}k2.json {compared} 2",
        "profile": f"profile_step.py {TINY} --device cpu --warmup 1 --batch 1",
    }
    skipped = {"decoding": "has a --quick of its own", "resources": "not at tiny sizes"}
    return [
        Section(name, 120, 10, lines[name])
        if name in lines
        else Section(name, 1, 0, missing=skipped.get(name, "needs a CUDA GPU"))
        for name in (section.name for section in full_sections())
    ]


def batch_to_compare(sweep: Path) -> int:
    """``COMPARED_BATCH``, or less where the sweep found that too large; the smallest if there was
    no sweep."""
    try:
        batches = json.loads(sweep.read_text())["batches"]
    except (OSError, ValueError, KeyError):
        return SWEEP[0]
    fitting = [
        int(batch)
        for batch, entry in batches.items()
        if any("clips_per_s" in path for path in entry["paths"].values())
    ]
    return max((batch for batch in fitting if batch <= COMPARED_BATCH), default=SWEEP[0])
