"""Training throughput: the same step side by side as reference, sdpa, compiled, fast, and peers.

    python benchmarks/throughput.py --device cpu --model vit_base --batch 1 --steps 3

Before anything is timed, every path takes the first step from the same weights, clips and draws,
and must agree with the first path; exit code 1 names the one that does not. Exempt are ``random``
and the ``videomae`` paths, which draw other masks, and ``every4``, whose sampler learns from fewer
clips. With ``--isolate`` each path has a process to itself, so that a CUDA error ends it alone, and
those that disagree are dropped afterwards. The record is written after every batch size, with
``--isolate`` after every path. Times are those of whole training steps (``pretrain_step``), on a
GPU by its own clock and without waiting for it between steps, as in training. One batch lies on the
device throughout: no loading in the step.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from typing import Any

import torch
from parts import bench
from parts.isolate import is_cuda_error
from parts.step.isolated import measure_alone, measure_isolated
from parts.step.measure import Measured, NothingRan, measure
from parts.step.paths import PATHS
from parts.step.record import describe
from plots import save as save_all

from tats_fast.config import ConfigError, RunConfig, load_config
from tats_fast.engine.distributed import pick_device

# What each path or this script decides; an override could only contradict it.
RESERVED = {
    "model.attention": "every path sets its own",
    "device": "use --device",
    "train.batch_size": "use --batch",
    "train.compile": "every path sets its own",
    "train.cuda_graph": "every path sets its own",
    "masking.schedule": "the mask ratio is constant here; use --mask-ratio",
    "sampler.learn_every": "every path sets its own",
    "distributed.engine": "the benchmark is one plain process",
}


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
    add("--inner-epochs", type=bench.positive_int, default=1, metavar="K", help="ppo.epochs")
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
    paths = f"of {', '.join(PATHS)} (default: reference, sdpa, fast; compiled too on a GPU)"
    add("--paths", type=bench.names_of(PATHS), metavar="A,B", help=paths)
    peak = "what MFU is relative to (default: a product measured on the GPU, none on the CPU)"
    add("--peak-tflops", type=bench.positive_float, help=peak)
    going = "record a path that is wrong or fails, go on with the others, and exit with 1"
    add("--keep-going", action="store_true", help=going)
    apart = "every path alone, in a process that its failure, or so many seconds, may end"
    add("--isolate", type=bench.positive_float, metavar="SECONDS", help=apart)
    add("--alone", action="store_true", help="used by --isolate on this script")
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


def run(options: Any) -> int:
    """Every batch size in turn, the record written after each; the exit code."""
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    batches = options.batches or [options.batch or (64 if gpu else 1)]
    if options.warmup is None:
        options.warmup = 3 if gpu else 1
    default = ("reference", "sdpa", *["compiled"] * gpu, "fast")
    names = options.paths or default
    if options.alone:
        return measure_alone(options, read_config(options, batches[0]), names, device)
    record = bench.new_record(device)
    print(describe(record, read_config(options, batches[0])), flush=True)
    measured: dict[int, Measured] = {}

    def keep(batch: int, result: Measured) -> None:
        measured[batch] = result
        fill(record, measured, several=len(batches) > 1)
        if options.json:
            bench.write_json(options.json, record)

    for batch in batches:
        config = read_config(options, batch)
        try:
            if options.isolate:
                save = partial(keep, batch)
                result = measure_isolated(options, config, names, device, save)
            else:
                result = measure(options, config, names, device)
            keep(batch, result)
        except torch.OutOfMemoryError:
            print(f"batch {batch}: out of GPU memory between steps")
        except NothingRan as error:
            if options.json and not measured:
                bench.write_json(options.json, record | {"paths": error.paths})
            if len(batches) == 1 or is_cuda_error(error):
                raise
            print(f"batch {batch}: {error}")
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    if not measured:
        raise bench.Failed("no batch size could run")
    if len(batches) > 1:
        best = record["config"]["batch"]
        print(f"most clips/s at batch {best}; the record's config and paths are that batch's")
    save_all(record, options)
    return int(any("failed" in path for _, ps in measured.values() for path in ps.values()))


def fill(record: dict[str, Any], measured: dict[int, Measured], several: bool) -> None:
    """``config`` and ``paths`` of the batch with most clips/s (of the last path that is judged by
    the gate, where one ran), and all batches where there are ``several``."""
    rates = {}
    for batch, (_, paths) in measured.items():
        timed = {name: path["clips_per_s"] for name, path in paths.items() if "step_ms" in path}
        rates[batch] = [r for name, r in timed.items() if PATHS[name].compared] or [*timed.values()]
    best = max(rates, key=lambda batch: rates[batch][-1])
    record["config"], record["paths"] = measured[best]
    if several:
        record["batches"] = {str(b): {"paths": paths} for b, (_, paths) in measured.items()}


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
