"""``tats-fast evaluate``."""

from __future__ import annotations

import argparse
import os

from tats_fast.commands.running import add_model_overrides, model_overrides


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    evaluate = commands.add_parser(
        "evaluate", help="accuracy of a fine-tuned classifier over several views of each video"
    )
    evaluate.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="run, checkpoint folder or file"
    )
    evaluate.add_argument(
        "--list", metavar="LIST", help="list file with labels (default: the run's data.eval)"
    )
    evaluate.add_argument("--root", metavar="DIR", help="where the list's paths start")
    evaluate.add_argument(
        "--out", metavar="DIR", help="folder to write (default: evaluation in the run's folder)"
    )
    evaluate.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    for name, default, text in (
        ("--stride", 4, "frames from one to the next; 0 = one per segment of the whole video"),
        ("--clips", 5, "clips per video"),
        ("--crops", 3, "crops per clip, along the long side"),
    ):
        help_text = f"{text} (default: the run's, or {default})"
        evaluate.add_argument(name, type=int, metavar="N", help=help_text)
    evaluate.add_argument(
        "--batch-size", type=int, metavar="N", default=16, help="views at once (default: 16)"
    )
    evaluate.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes per rank (default: all cores)"
    )
    evaluate.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds per video (default: 60)"
    )
    add_model_overrides(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import join_world
    from tats_fast.recognition.evaluate import EvaluateOptions, run_evaluation

    overrides = model_overrides(options.overrides)
    names = ("checkpoint", "list", "root", "stride", "clips", "crops", "out")
    chosen = EvaluateOptions(
        workers=_cores() if options.workers is None else options.workers,
        **{name: getattr(options, name) for name in (*names, "batch_size", "timeout")},
    )
    world = join_world(options.device, getattr(options, "local_rank", None))
    return run_evaluation(chosen, world, overrides)


def _cores() -> int:
    """Cores for each of a launcher's processes on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // processes)
