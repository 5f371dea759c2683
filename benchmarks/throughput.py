"""Training throughput, the same step run side by side as reference, sdpa, compiled and fast.

    python benchmarks/throughput.py --device cpu --model vit_base --batch 1 --steps 3

Before anything is timed, every path takes the first step from the same weights, clips and draws,
and must agree with the first path; exit code 1 names the one that does not. Times are those of
whole training steps (``tats_fast.pretrain.step.train_step``), on a GPU by its own clock and without
waiting for it between steps, as in training. One batch lies on the device throughout, so loading is
not part of the step.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from parts import bench, ceilings
from parts.ops.timing import steps_ms
from parts.step.paths import (
    GRADIENT_TOLERANCE,
    PATHS,
    RELATIVE_TOLERANCE,
    Contender,
    disagreements,
    load_clips,
    make_contender,
)
from parts.step.record import describe, describe_batch, gate_line, results, summary
from parts.step.stages import STAGES, StageClock, instrumented, peak_memory_mb
from plots import draw_throughput, outputs_problem

from tats_fast.config import ConfigError, RunConfig, load_config
from tats_fast.config.reading import to_dict
from tats_fast.engine.distributed import pick_device
from tats_fast.masking import visible_tokens
from tats_fast.pretrain.flops import training_step

# What each path or this script decides; an override could only contradict it.
RESERVED = {
    "model.attention": "every path sets its own",
    "device": "use --device",
    "train.batch_size": "use --batch",
    "train.compile": "every path sets its own",
    "masking.schedule": "the mask ratio is constant here; use --mask-ratio",
    "distributed.engine": "the benchmark is one plain process",
}
STAGE_STEPS = 5
"""At most this many untimed steps per path for stages and memory; fewer where --steps is less."""


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--model", default="vit_base", metavar="PRESET", help="model.preset (default: %(default)s)")
    add("--batch", type=bench.positive_int, help="clips per step (default: 1; 64 on a GPU)")
    add("--batches", type=bench.positive_int, nargs="+", metavar="B", help="several, in turn; the "
        "record's main entry is the one with most clips/s of the last path")  # fmt: skip
    add("--steps", type=bench.positive_int, default=10, help="timed steps per path")
    add("--warmup", type=bench.natural_int, help="untimed rounds (default: 1; 3 on a GPU)")
    add("--paths", metavar="A,B", help="of reference, sdpa, compiled, fast, fast_eager (default: "
        "the first four; on the CPU without compiled)")  # fmt: skip
    add("--mask-ratio", type=float, default=0.95, help="share of tokens hidden")
    add("--image-size", type=bench.positive_int, help="side of the clip, pixels")
    add("--frames", type=bench.positive_int, help="frames per clip")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    add("--inner-epochs", type=bench.positive_int, default=2, metavar="K", help="ppo.epochs")
    add("--seed", type=bench.natural_int, default=0, help="of weights, clips and draws")
    add("--peak-tflops", type=bench.positive_float, help="matrix rate that MFU is relative to "
        "(default: the GPU's data sheet, none on the CPU)")  # fmt: skip
    add("--keep-going", action="store_true", help="record a path that is wrong or fails, go on "
        "with the others, and exit with 1 in the end")  # fmt: skip
    add("--json", metavar="FILE", help="write the record")
    add("--plot", metavar="FILE.png", help="draw the stages, and clips/s over the batch size")
    add("overrides", nargs="*", metavar="key=value", help="configuration, such as model.depth=2")
    return parser


def read_config(options: Any, batch: int) -> RunConfig:
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
        "train.batch_size": batch,
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
        return ["reference", "sdpa", *["compiled"] * (device.type == "cuda"), "fast"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PATHS:
            raise ConfigError(f"--paths {name}: must be of {', '.join(PATHS)}")
    return [name for name in PATHS if name in names]


class GateError(Exception):
    """A path whose first step is not the baseline's."""


def enter(
    names: Sequence[str],
    config: RunConfig,
    device: torch.device,
    clips: torch.Tensor,
    keep_going: bool = False,
) -> tuple[dict[str, Contender], dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """Build the paths and let each pass the gate.

    Returns:
        contenders, their first steps' values, and the entries of those that do not take part:
        ``skipped`` where torch.compile fails or the GPU is too small for the path, ``failed``
        (with ``keep_going``) where the path does.

    Raises:
        GateError: a path computes something else.
    """
    contenders, first, out = {}, {}, {}
    for name in names:
        try:
            contender = make_contender(PATHS[name], config, device, clips)
            values = contender.first_step()
            precision = "bf16" if contender.learner.bf16 else "fp32"
            baseline = next(iter(first), name)
            wrong = disagreements(values, first.get(baseline, values), precision)
            if wrong:
                raise GateError(f"path {name} disagrees with {baseline}: {'; '.join(wrong)}")
            first[name], contenders[name] = values, contender
        except torch.OutOfMemoryError:
            out[name] = {"skipped": f"out of GPU memory at batch {config.train.batch_size}"}
            torch.cuda.empty_cache()
        except Exception as error:
            reason = bench.first_line(error)
            if isinstance(error, ConfigError):
                raise
            if device.type in PATHS[name].compiled and not isinstance(error, GateError):
                out[name] = {"skipped": f"torch.compile failed: {reason}"}
            elif keep_going:
                out[name] = {"failed": reason}
            else:
                raise
    return contenders, first, out


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


def settings_of(options: Any, config: RunConfig, source: str, device: torch.device) -> dict:
    """The record's ``config`` for one batch size."""
    bf16 = config.train.precision == "bf16" or (
        config.train.precision == "auto" and device.type == "cuda"
    )
    precision = "bf16" if bf16 else "fp32"
    visible = visible_tokens(config.masking.strategy, config.model, config.masking.ratio)
    return {
        **{"device": device.type, "batch": config.train.batch_size, "steps": options.steps},
        **{"warmup": options.warmup, "precision": precision, "inner_epochs": config.ppo.epochs},
        **{"tokens": config.model.num_tokens, "visible": visible, "clips": source},
        "tolerance_losses": RELATIVE_TOLERANCE[precision],
        "tolerance_grad_norms": GRADIENT_TOLERANCE[precision],
        "step_gflop_per_clip": training_step(config) / 1e9,
        "peak_tflops": options.peak_tflops or ceilings.peak_tflops(device, precision),
        "run": to_dict(config),
    }


class NothingRan(Exception):
    """No path could run, or one ran into numbers that are not finite."""


def measure(
    options: Any, names: Sequence[str], batch: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config`` and ``paths`` of one batch size: gate, time, inspect, print.

    Raises:
        GateError: a path computes something else.
        NothingRan: one sentence.
    """
    config = read_config(options, batch)
    clips, source = load_clips(config.model, batch, config.seed)
    settings = settings_of(options, config, source, device)
    print(describe_batch(settings), flush=True)
    clips = clips.to(device)
    contenders, first, others = enter(names, config, device, clips, options.keep_going)
    for name, entry in others.items():
        ((how, why),) = entry.items()
        print(f"{how} {name}: {why}")
    if not contenders:
        raise NothingRan(f"no path could run at batch {batch}")
    print(gate_line(first, settings) + "\n")
    calls = {name: contender.step for name, contender in contenders.items()}
    times = steps_ms(calls, device, options.steps, options.warmup)
    stages, memory = inspect(contenders, device, options.steps)
    for name, contender in contenders.items():
        if torch.stack(contender.skipped).any():
            raise NothingRan(f"path {name}: a step was skipped as not finite")
    settings["paths"] = {
        name: {
            "attention": c.learner.runner.module.backend,
            "kernels": c.levels(),
            "compile": c.learner.config.train.compile,
        }
        for name, c in contenders.items()
    }
    paths = {
        name: others[name]
        if name in others
        else summary(times[name], stages[name], memory[name], first[name], settings)
        for name in names
    }
    print(results(settings, paths) + "\n", flush=True)
    return settings, paths


def run(options: Any) -> int:
    """Every batch size in turn; the exit code."""
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    batches = options.batches or [options.batch or (64 if gpu else 1)]
    if options.warmup is None:
        options.warmup = 3 if gpu else 1
    read_config(options, batches[0])
    names = chosen_paths(options.paths, device)
    problem = outputs_problem(options.json, options.plot)
    if problem:
        raise ConfigError(problem)
    record: dict[str, Any] = {
        "hardware": bench.hardware(device),
        "versions": bench.versions(),
        "commit": bench.git_commit(),
    }
    print(describe(record, read_config(options, batches[0])))
    measured: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for batch in batches:
        try:
            measured[batch] = measure(options, names, batch, device)
        except GateError as error:
            return bench.fail(f"{error} (nothing was timed)", 1)
        except torch.OutOfMemoryError:
            print(f"batch {batch}: out of GPU memory between steps")
        except NothingRan as error:
            if len(batches) == 1:
                return bench.fail(str(error), 1)
            print(f"batch {batch}: {error}")
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    if not measured:
        return bench.fail("no batch size could run", 1)
    best = max(measured, key=lambda batch: rate(measured[batch][1], names))
    record["config"], record["paths"] = measured[best]
    if len(batches) > 1:
        record["batches"] = {str(b): {"paths": paths} for b, (_, paths) in measured.items()}
        print(f"most clips/s at batch {best}; the record's config and paths are that batch's")
    if options.json:
        bench.write_json(options.json, record)
    if options.plot:
        draw_throughput(record, options.plot)
    failed = any("failed" in path for _, paths in measured.values() for path in paths.values())
    return int(failed)


def rate(paths: dict[str, Any], names: Sequence[str]) -> float:
    """Clips/s of the last path that ran: what a batch size is chosen by."""
    return next(
        (paths[name]["clips_per_s"] for name in reversed(names) if "clips_per_s" in paths[name]), 0
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 a path computes something else; 2 wrong use."""
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    try:
        return run(options)
    except ConfigError as error:
        return bench.fail(str(error), 2)


if __name__ == "__main__":
    sys.exit(main())
