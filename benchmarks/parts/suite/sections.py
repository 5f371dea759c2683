"""The sections of the GPU suite: what each runs, within which time, and what it needs."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from parts.bench import installed

HERE = Path(__file__).resolve().parent.parent.parent
STAGE_SECONDS = {"a": 150.0, "b": 460.0}
"""Of the first contact with a GPU, and of the measurement."""
BATCH = 64
"""All paths side by side: the largest usual size at which the reference fits an 80 GB card."""
SWEEP = (128, 256, 32)
"""Beside ``BATCH``, in order of worth."""
TINY = (
    "--image-size 32 --frames 8 --mask-ratio 0.75 model.patch_size=8 model.width=32 model.depth=1 "
    "model.heads=2 model.decoder_width=16 model.decoder_depth=1 model.decoder_heads=2"
)
SAVING_SECONDS = 10
"""What a script that writes as it goes is told to leave of its time."""
SANITIZER = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


@dataclass(frozen=True)
class Section:
    """One part of the suite, a process of its own."""

    name: str
    limit: float
    """The most seconds it gets."""
    reserve: float
    """Seconds that the sections before it must leave."""
    line: str = ""
    """A script of benchmarks/ and its options. ``{out}`` is the folder of raw results and
    ``{seconds}`` what the script may use."""
    helpers: tuple[str, ...] = ()
    """Lines of scripts started beside it and ended with it: they only fill caches, so none may
    stand beside a section that times anything."""
    missing: str | None = None
    """Why it cannot run."""
    prefix: tuple[str, ...] = ()
    """A program that runs the script."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables added for it."""

    def command(self, out: Path, granted: float) -> list[str]:
        """Its command line, for ``granted`` seconds."""
        seconds = max(1.0, granted - SAVING_SECONDS)
        return [*self.prefix, *script(self.line, out=out, seconds=seconds)]


def script(line: str, **values: object) -> list[str]:
    """The command that ``line`` stands for; a filled-in value stays one word."""
    name, *options = (word.format(**values) for word in line.split())
    return [sys.executable, str(HERE / name), *options]


def _lack(*modules: str) -> str | None:
    absent = [module for module in modules if not installed(module)]
    return f"{', '.join(absent)} is not installed" if absent else None


STEP = "throughput.py --device cuda --keep-going --inner-epochs"
OPS = "ops.py --device cuda --case vit_b_r95 --keep-going"
ENVIRONMENT = "environment.py --device cuda --seconds 0.5 --json {out}/environment.json"


def _warm(paths: str, batch: int = BATCH) -> str:
    """A line that compiles what these paths need and times nothing that counts."""
    return f"{STEP} 1 --paths {paths} --steps 1 --warmup 0 --batch {batch}"


def contact_sections() -> list[Section]:
    """Stage a: whether everything runs and is right, ViT-B where a model is needed."""
    tests = "gpu_tests.py --limit {seconds} --json {out}/tests.json"
    checked = "ops.py --device cuda --case tiny --impl triton --steps 1 --warmup 0 --batch 2"
    checked += " --keep-going --json {out}/sanitized.json"
    first = f"{STEP} 1 --paths reference,fast,fast_eager --steps 3 --warmup 1 --batch {BATCH}"
    sanitizer = next(filter(shutil.which, SANITIZER), None)
    options = ("--tool", "memcheck", "--error-exitcode", "9")
    no_sanitizer = None if sanitizer else "compute-sanitizer is not installed"
    return [
        Section("environment", 30, 12, ENVIRONMENT),
        Section("tests", 105, 65, tests, (_warm("compiled,fast"),), _lack("pytest")),
        Section("first steps", 60, 45, f"{first} --isolate 40 --json {{out}}/first.json"),
        Section(
            *("sanitizer", 45, 10, checked),
            missing=_lack("triton") or no_sanitizer,
            prefix=(sanitizer or SANITIZER[0], *options),
            # Every tensor an allocation of its own, so that its bounds are those that are checked.
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        ),
    ]


def measurement_sections() -> list[Section]:
    """Stage b: ViT-B 16 x 224 x 224, in order of worth; no two things run beside each other while
    one of them is timed."""
    alone = f"--batch {BATCH} --isolate 60 --json {{out}}"
    # In order of worth: what comes last may be cut off.
    all_paths = "reference,compiled,fast,videomae,videomae_compiled,random,every4,random_graph"
    all_paths += ",sdpa,fast_eager"
    sizes = " ".join(map(str, SWEEP))
    sweep = f"{STEP} 1 --paths fast --steps 5 --batches {sizes} --isolate 50"
    profile = f"profile_step.py --device cuda --inner-epochs 1 --batch {BATCH} --path"
    repeat = f"repeat_step.py --device cuda --inner-epochs 1 --batch {BATCH}"
    # Not compiled: that would take most of each run's half minute.
    pretrain = "pretrain_precision.py --device cuda --limit {seconds} train.compile=false"
    pretrain += " --json {out}/pretrain.json"
    warmers = (
        *(_warm("compiled"), _warm("videomae_compiled"), _warm("fast", SWEEP[0])),
        f"{OPS} --impl compiled,triton_compiled --steps 1 --warmup 0",
    )
    return [
        Section("environment", 25, 18, ENVIRONMENT),
        Section("compiling", 80, 40, _warm("fast"), warmers),
        Section("throughput K=1", 170, 110, f"{STEP} 1 --paths {all_paths} {alone}/k1.json"),
        Section("sweep", 85, 45, f"{sweep} --json {{out}}/sweep.json"),
        Section("ops", 80, 45, f"{OPS} --steps 10 --isolate {{seconds}} --json {{out}}/ops.json"),
        Section("profile", 30, 18, f"{profile} fast"),
        Section("profile eager", 30, 18, f"{profile} fast_eager"),
        Section("attention", 30, 15, "sdpa.py --device cuda --json {out}/sdpa.json"),
        Section("throughput K=2", 50, 25, f"{STEP} 2 --paths reference,fast {alone}/k2.json"),
        Section(
            *("tuning", 60, 35, "tune_kernels.py --limit {seconds} --json {out}/tuning.json"),
            missing=_lack("triton"),
        ),
        Section("repeat", 30, 18, f"{repeat} --paths fast,fast_eager --json {{out}}/repeat.json"),
        Section("pretraining", 75, 60, pretrain, missing=_lack("av")),
    ]


STAGES = {"a": contact_sections, "b": measurement_sections}


def full_sections(stage: str | None) -> list[Section]:
    """Of one stage, or of both one after the other; what both have runs once."""
    both = [section for name in STAGES for section in STAGES[name]()]
    return STAGES[stage]() if stage else list({section.name: section for section in both}.values())


def quick_sections(stage: str | None) -> list[Section]:
    """The same sections at tiny sizes on the CPU, for tests; what needs a GPU is skipped."""
    step = f"throughput.py {TINY} --device cpu --steps 1 --warmup 0 --keep-going --json {{out}}/"
    compared = "--isolate 60 --batch 2 --inner-epochs"
    tiny = f"{TINY} --device cpu --batch 1"
    lines = {
        "environment": "environment.py --device cpu --seconds 0.1 --json {out}/environment.json",
        "first steps": f"{step}first.json --paths fast --batch 1 --inner-epochs 1",
        "throughput K=1": f"{step}k1.json --paths reference,fast,random,videomae {compared} 1",
        "sweep": f"{step}sweep.json --batches 1 2 --paths fast",
        "ops": "ops.py --device cpu --case tiny --impl torch --steps 1 --warmup 0 --batch 1 "
        "--isolate {seconds} --json {out}/ops.json",
        "profile": f"profile_step.py {tiny} --warmup 1",
        "attention": "sdpa.py --device cpu --shapes encoder --batch 1 --steps 1 "
        "--json {out}/sdpa.json",
        "throughput K=2": f"{step}k2.json --paths reference,fast --batch 2 --inner-epochs 2",
        "repeat": f"repeat_step.py {tiny} --json {{out}}/repeat.json",
        "pretraining": "pretrain_precision.py --device cpu --steps 2 --batch 2 --workers 0 --limit "
        "{seconds} --json {out}/pretrain.json masking.ratio=0.75 model.num_frames=4 "
        f"model.image_size=32 {' '.join(word for word in TINY.split() if 'model.' in word)}",
    }
    return [
        Section(section.name, 120, 10, lines[section.name])
        if section.name in lines
        else Section(section.name, 1, 0, missing="needs a CUDA GPU")
        for section in full_sections(stage)
    ]
