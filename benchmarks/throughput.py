"""Training throughput, the same step run side by side as reference, sdpa, compiled and fast.

    python benchmarks/throughput.py --device cpu --model vit_base --batch 1 --steps 3

Before anything is timed, every path takes the first step from the same weights, clips and draws,
and must agree with the first path; exit code 1 names the one that does not. Times are those of
whole training steps (``tats_fast.engine.step.train_step``) that end with a drained device. One
batch lies on the device throughout, so loading is not part of the step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import common
import flops
import torch
from paths import (
    GRADIENT_TOLERANCE,
    PATHS,
    RELATIVE_TOLERANCE,
    Contender,
    disagreements,
    load_clips,
    make_contender,
)
from record import describe, gate_line, results, summary
from stages import STAGES, StageClock, instrumented, peak_memory_mb

from tats_fast.config import ConfigError, RunConfig, load_config
from tats_fast.config.load import to_dict
from tats_fast.engine.distributed import pick_device
from tats_fast.masking import visible_tokens

# What each path or this script decides; an override could only contradict it.
RESERVED = {
    "model.attention": "every path sets its own",
    "device": "use --device",
    "train.batch_size": "use --batch",
    "masking.schedule": "the mask ratio is constant here; use --mask-ratio",
    "distributed.engine": "the benchmark is one plain process",
}
STAGE_STEPS = 5
"""At most this many untimed steps per path for stages and memory; fewer where --steps is less."""


def make_parser() -> common.Parser:
    """The command line."""
    parser = common.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--model", default="vit_base", metavar="PRESET", help="model.preset (default: %(default)s)")
    add("--batch", type=common.positive_int, help="clips per step (default: 1; 64 on a GPU)")
    add("--steps", type=common.positive_int, default=10, help="timed steps per path")
    add("--warmup", type=common.natural_int, help="untimed rounds (default: 1; 3 on a GPU)")
    add("--paths", metavar="A,B", help="of reference, sdpa, compiled, fast (default: all; on the "
        "CPU without compiled)")  # fmt: skip
    add("--mask-ratio", type=float, default=0.95, help="share of tokens hidden")
    add("--image-size", type=common.positive_int, help="side of the clip, pixels")
    add("--frames", type=common.positive_int, help="frames per clip")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    add("--inner-epochs", type=common.positive_int, default=2, metavar="K", help="ppo.epochs")
    add("--seed", type=common.natural_int, default=0, help="of weights, clips and draws")
    add("--peak-tflops", type=common.positive_float, help="matrix rate that MFU is relative to "
        "(default: the GPU's data sheet, none on the CPU)")  # fmt: skip
    add("--json", metavar="FILE", help="write the record")
    add("overrides", nargs="*", metavar="key=value", help="configuration, such as model.depth=2")
    return parser


def read_config(options: Any) -> RunConfig:
    """The run's configuration: what the options say, then the overrides.

    Raises:
        ConfigError: one line.
    """
    for text in options.overrides:
        key = text.partition("=")[0].strip()
        if key in RESERVED:
            raise ConfigError(f"{text}: {RESERVED[key]}")
    given = {
        "model.preset": options.model,
        "model.image_size": options.image_size,
        "model.num_frames": options.frames,
        "masking.ratio": options.mask_ratio,
        "ppo.epochs": options.inner_epochs,
        "train.batch_size": options.batch,
        "train.precision": options.precision,
        "seed": options.seed,
    }
    settings = [f"{key}={value}" for key, value in given.items() if value is not None]
    return load_config(overrides=[*settings, *options.overrides])


def chosen_paths(text: str | None, device: torch.device) -> list[str]:
    """Path names in the fixed order; the first is what the others are compared with.

    Raises:
        ConfigError: an unknown name.
    """
    if text is None:
        return [name for name in PATHS if name != "compiled" or device.type == "cuda"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PATHS:
            raise ConfigError(f"--paths {name}: must be of {', '.join(PATHS)}")
    return [name for name in PATHS if name in names]


class GateError(Exception):
    """A path whose first step is not the baseline's."""


def enter(
    names: Sequence[str], config: RunConfig, device: torch.device, clips: torch.Tensor
) -> tuple[dict[str, Contender], dict[str, dict[str, float]], dict[str, str]]:
    """Build the paths and let each pass the gate.

    Returns:
        contenders, their first steps' values, and why others are skipped: torch.compile failing,
        or a GPU too small for the path.

    Raises:
        GateError: a path computes something else.
    """
    contenders, first, skipped = {}, {}, {}
    for name in names:
        try:
            contender = make_contender(PATHS[name], config, device, clips)
            values = contender.first_step()
        except torch.OutOfMemoryError:
            skipped[name] = f"out of GPU memory at batch {config.train.batch_size}"
            torch.cuda.empty_cache()
            continue
        except Exception as error:
            if not PATHS[name].compiled or isinstance(error, ConfigError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            skipped[name] = f"torch.compile failed: {reason}"
            continue
        precision = "bf16" if contender.learner.bf16 else "fp32"
        baseline = next(iter(first), name)
        first[name] = values
        wrong = disagreements(values, first[baseline], precision)
        if wrong:
            raise GateError(f"path {name} disagrees with {baseline}: {'; '.join(wrong)}")
        contenders[name] = contender
    return contenders, first, skipped


def inspect(
    contenders: dict[str, Contender], device: torch.device, steps: int
) -> tuple[dict[str, dict[str, float | None]], dict[str, float | None]]:
    """Stages (ms, medians) and peak memory (MiB) of every path, in untimed steps of their own."""
    seen: dict[str, list[dict[str, float | None]]] = {name: [] for name in contenders}
    memory: dict[str, float | None] = {}
    clock = StageClock(device)
    for index in range(min(steps, STAGE_STEPS)):
        for name, contender in contenders.items():
            if index == 0:
                memory[name] = peak_memory_mb(contender.step, contender.learner, device)
            with instrumented(contender.learner, clock):
                seen[name].append(clock.measure(contender.step))
    stages = {
        name: {
            stage: None if rows[0][stage] is None else median(row[stage] for row in rows)
            for stage in STAGES
        }
        for name, rows in seen.items()
    }
    return stages, memory


def run(options: Any) -> int:
    """Gate, time, inspect, print, write; the exit code."""
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    options.batch = options.batch or (64 if gpu else 1)
    warmup = options.warmup if options.warmup is not None else (3 if gpu else 1)
    config = read_config(options)
    names = chosen_paths(options.paths, device)
    problem = common.check_writable(options.json)
    if problem:
        raise ConfigError(problem)
    clips, source = load_clips(config.model, config.train.batch_size, config.seed)
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and gpu)
    precision = "bf16" if bf16 else "fp32"
    visible = visible_tokens(config.masking.strategy, config.model, config.masking.ratio)
    settings = {
        **{"device": device.type, "batch": options.batch, "steps": options.steps},
        **{"warmup": warmup, "precision": precision, "inner_epochs": config.ppo.epochs},
        **{"tokens": config.model.num_tokens, "visible": visible, "clips": source},
        "tolerance_losses": RELATIVE_TOLERANCE[precision],
        "tolerance_grad_norms": GRADIENT_TOLERANCE[precision],
        "step_gflop_per_clip": flops.training_step(config) / 1e9,
        "peak_tflops": options.peak_tflops or common.peak_tflops(device, precision),
        "run": to_dict(config),
    }
    record: dict[str, Any] = {
        "hardware": common.hardware(device),
        "versions": common.versions(),
        "commit": common.git_commit(),
        "config": settings,
        "paths": {},
    }
    print(describe(record))
    try:
        contenders, first, skipped = enter(names, config, device, clips.to(device))
    except GateError as error:
        return common.fail(f"{error} (nothing was timed)", 1)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    if not contenders:
        return common.fail("no path could run", 1)
    print(gate_line(first, settings) + "\n")
    calls = {name: contender.step for name, contender in contenders.items()}
    times = common.interleaved_ms(calls, device, options.steps, warmup)
    stages, memory = inspect(contenders, device, options.steps)
    for name, contender in contenders.items():
        if torch.stack(contender.skipped).any():
            return common.fail(f"path {name}: a step was skipped as not finite", 1)
    settings["paths"] = {
        name: {"attention": c.learner.runner.module.backend, "kernels": c.levels()}
        for name, c in contenders.items()
    }
    for name in names:
        record["paths"][name] = (
            {"skipped": skipped[name]}
            if name in skipped
            else summary(times[name], stages[name], memory[name], first[name], settings)
        )
    print(results(record, list(contenders)))
    if options.json:
        common.write_json(options.json, record)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 a path computes something else; 2 wrong use."""
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    try:
        return run(options)
    except ConfigError as error:
        return common.fail(str(error), 2)


if __name__ == "__main__":
    sys.exit(main())
