"""Training throughput, the same step run side by side as reference, sdpa, compiled and fast.

    python benchmarks/throughput.py --device cpu --model vit_base --batch 1 --steps 3

Before anything is timed, every path takes the first step from the same weights, clips and draws,
and must agree with the first path; exit code 1 names the one that does not. Times are those of
whole training steps (``pretrain_step``), on a GPU by its own clock and without
waiting for it between steps, as in training. One batch lies on the device throughout, so loading is
not part of the step.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from parts import bench
from parts.ops.timing import steps_ms
from parts.step.paths import PATHS, TOLERANCES, Contender, disagreements, load_clips, make_contender
from parts.step.record import describe, describe_batch, gate_line, results, summary
from parts.step.stages import STAGES, peak_memory_mb, stages_ms
from plots import save

from tats_fast.config import ConfigError, RunConfig, load_config
from tats_fast.config.reading import to_dict
from tats_fast.engine.distributed import pick_device
from tats_fast.engine.peak import peak_tflops
from tats_fast.engine.precision import wants_bf16
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


def add_step_options(parser: bench.Parser) -> None:
    """What says which step runs, here and in profile_step.py."""
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--model", default="vit_base", metavar="PRESET", help="model.preset (default: %(default)s)")
    add("--batch", type=bench.positive_int, help="clips per step (default: 1; 64 on a GPU)")
    add("--mask-ratio", type=float, default=0.95, help="share of tokens hidden")
    add("--image-size", type=bench.positive_int, help="side of the clip, pixels")
    add("--frames", type=bench.positive_int, help="frames per clip")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    add("--inner-epochs", type=bench.positive_int, default=2, metavar="K", help="ppo.epochs")
    add("--seed", type=bench.natural_int, default=0, help="of weights, clips and draws")
    add("overrides", nargs="*", metavar="key=value", help="configuration, such as model.depth=2")


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add_step_options(parser)
    add = parser.add_argument
    several = "measure each of these in turn; the one with most clips/s makes the main entry"
    add("--batches", type=bench.positive_int, nargs="+", metavar="B", help=several)
    add("--steps", type=bench.positive_int, default=10, help="timed steps per path")
    add("--warmup", type=bench.natural_int, help="untimed rounds (default: 1; 3 on a GPU)")
    paths = f"of {', '.join(PATHS)} (default: the first four; on the CPU without compiled)"
    add("--paths", type=bench.names_of(PATHS), metavar="A,B", help=paths)
    peak = "matrix rate that MFU is relative to (default: the GPU's data sheet, none on the CPU)"
    add("--peak-tflops", type=bench.positive_float, help=peak)
    going = "record a path that is wrong or fails, go on with the others, and exit with 1"
    add("--keep-going", action="store_true", help=going)
    add("--json", metavar="FILE", help="write the record")
    add("--plot", metavar="FILE.png", help="draw the stages, and clips/s over the batch size")
    return parser


def read_config(options: Any, batch: int) -> RunConfig:
    """The run's configuration: the step's options, then the overrides.

    Raises:
        ConfigError: one line.
    """
    for text in options.overrides:
        key = text.partition("=")[0].strip()
        if key in RESERVED:
            raise ConfigError(f"{text}: {RESERVED[key]}")
    settings = {
        "model.preset": options.model,
        "model.image_size": options.image_size,
        "model.num_frames": options.frames,
        "masking.ratio": options.mask_ratio,
        "ppo.epochs": options.inner_epochs,
        "train.batch_size": batch,
        "train.precision": options.precision,
        "seed": options.seed,
    }
    overrides = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return load_config(overrides=[*overrides, *options.overrides])


def enter(
    names: Sequence[str],
    config: RunConfig,
    device: torch.device,
    clips: torch.Tensor,
    keep_going: bool = False,
) -> tuple[dict[str, Contender], dict[str, dict[str, str]]]:
    """Build the paths and let each pass the gate.

    Returns:
        contenders after their first step, and the entries of those that do not take part:
        ``skipped`` where torch.compile fails or the GPU is too small for the path, ``failed``
        (with ``keep_going``) where the path does.

    Raises:
        Failed: a path computes something else.
    """
    contenders: dict[str, Contender] = {}
    others: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            contender = make_contender(PATHS[name], config, device, clips)
            contender.take_first_step()
        except torch.OutOfMemoryError:
            others[name] = {"skipped": f"out of GPU memory at batch {config.train.batch_size}"}
            torch.cuda.empty_cache()
        except ConfigError:
            raise
        except Exception as error:
            reason = bench.first_line(error)
            if device.type in PATHS[name].compiled:
                others[name] = {"skipped": f"torch.compile failed: {reason}"}
            elif keep_going:
                others[name] = {"failed": reason}
            else:
                raise
        else:
            baseline = next(iter(contenders), name)
            differences = disagreements(contender, contenders.get(baseline, contender))
            wrong = f"path {name} disagrees with {baseline}: {'; '.join(differences)}"
            if not differences:
                contenders[name] = contender
            elif keep_going:
                others[name] = {"failed": wrong[:160]}
            else:
                raise bench.Failed(f"{wrong} (nothing was timed)")
    return contenders, others


def settings_of(options: Any, config: RunConfig, source: str, device: torch.device) -> dict:
    """The record's ``config`` for one batch size."""
    precision = "bf16" if wants_bf16(config.train.precision, device) else "fp32"
    losses, norms = TOLERANCES[precision]
    return {
        "device": device.type,
        "batch": config.train.batch_size,
        "steps": options.steps,
        "warmup": options.warmup,
        "precision": precision,
        "inner_epochs": config.ppo.epochs,
        "tokens": config.model.num_tokens,
        "visible": visible_tokens(config.masking.strategy, config.model, config.masking.ratio),
        "clips": source,
        "tolerance_losses": losses,
        "tolerance_grad_norms": norms,
        "step_gflop_per_clip": training_step(config) / 1e9,
        "peak_tflops": options.peak_tflops or peak_tflops(device, precision),
        "run": to_dict(config),
    }


class NothingRan(bench.Failed):
    """No path could run, or one ran into numbers that are not finite."""


def measure(
    options: Any, names: Sequence[str], batch: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config`` and ``paths`` of one batch size: gate, time, inspect, print.

    Raises:
        Failed: a path computes something else, or (NothingRan) none could run.
    """
    config = read_config(options, batch)
    clips, source = load_clips(config.model, batch, config.seed)
    settings = settings_of(options, config, source, device)
    print(describe_batch(settings), flush=True)
    clips = clips.to(device)
    contenders, others = enter(names, config, device, clips, options.keep_going)
    for name, entry in others.items():
        ((how, why),) = entry.items()
        print(f"{how} {name}: {why}")
    if not contenders:
        raise NothingRan(f"no path could run at batch {batch}")
    print(gate_line({name: c.first for name, c in contenders.items()}, settings) + "\n")
    calls = {name: contender.step for name, contender in contenders.items()}
    times = steps_ms(calls, device, options.steps, options.warmup)
    memory = {name: peak_memory_mb(c.step, c.learner, device) for name, c in contenders.items()}
    spent = [
        {name: stages_ms(c.step, c.learner, device) for name, c in contenders.items()}
        for _ in range(min(options.steps, STAGE_STEPS))
    ]
    settings["paths"] = {name: contender.settings() for name, contender in contenders.items()}
    paths = dict.fromkeys(names) | others
    for name, contender in contenders.items():
        if torch.stack(contender.skipped).any():
            raise NothingRan(f"path {name}: a step was skipped as not finite")
        stages = {stage: median(turn[name][stage] for turn in spent) for stage in STAGES}
        loss = contender.first["loss_recon"]
        paths[name] = summary(times[name], stages, memory[name], loss, settings)
    print(results(settings, paths) + "\n", flush=True)
    return settings, paths


def run(options: Any) -> int:
    """Every batch size in turn; the exit code."""
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    batches = options.batches or [options.batch or (64 if gpu else 1)]
    if options.warmup is None:
        options.warmup = 3 if gpu else 1
    default = ("reference", "sdpa", *["compiled"] * gpu, "fast")
    names = options.paths or default
    record = bench.new_record(device)
    print(describe(record, read_config(options, batches[0])))
    measured: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for batch in batches:
        try:
            measured[batch] = measure(options, names, batch, device)
        except torch.OutOfMemoryError:
            print(f"batch {batch}: out of GPU memory between steps")
        except NothingRan as error:
            if len(batches) == 1:
                raise
            print(f"batch {batch}: {error}")
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    if not measured:
        raise bench.Failed("no batch size could run")
    rates = {
        batch: [path["clips_per_s"] for path in paths.values() if "clips_per_s" in path][-1]
        for batch, (_, paths) in measured.items()
    }  # of the last path that ran
    best = max(rates, key=rates.get)
    record["config"], record["paths"] = measured[best]
    if len(batches) > 1:
        record["batches"] = {str(b): {"paths": paths} for b, (_, paths) in measured.items()}
        print(f"most clips/s at batch {best}; the record's config and paths are that batch's")
    save(record, options)
    return int(any("failed" in path for _, ps in measured.values() for path in ps.values()))


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
