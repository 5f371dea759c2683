"""``tats-fast probe``."""

from __future__ import annotations

import argparse
import os

from tats_fast.commands.running import add_model_overrides, model_overrides


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    probe = commands.add_parser("probe", help="classify videos by a model's frozen features")
    probe.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="run, checkpoint folder or file"
    )
    probe.add_argument("--train", metavar="LIST", required=True, help="list file with labels")
    probe.add_argument("--eval", metavar="LIST", required=True, help="list file with labels")
    probe.add_argument("--root", metavar="DIR", help="where the lists' paths start")
    probe.add_argument(
        "--kinds",
        metavar="A,B",
        help="some of linear,linear_bn,knn,attentive (default: all)",
    )
    probe.add_argument("--out", metavar="DIR", default="probe", help="folder to write")
    probe.add_argument("--cache", metavar="DIR", help="where features are kept (OUT/features)")
    probe.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    probe.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="frames from one to the next; 0 = one per segment of the whole video (default: as the "
        "encoder was trained, or 4)",
    )
    for name, default, text in (
        ("--grid", 7, "attentive: tokens are averaged to at most N x N places per token-frame"),
        ("--batch-size", 16, "clips encoded at once"),
        ("--seed", 0, "of the held-out part and the attentive probe"),
    ):
        help_text = f"{text} (default: {default})"
        probe.add_argument(name, type=int, metavar="N", default=default, help=help_text)
    probe.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes (default: one per core)"
    )
    probe.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds per video (default: 60)"
    )
    add_model_overrides(probe)
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.recognition.probe import KINDS, ProbeOptions, run_probe

    overrides = model_overrides(options.overrides)
    device = pick_device(options.device)
    kinds = KINDS if options.kinds is None else tuple(options.kinds.split(","))
    names = ("checkpoint", "train", "eval", "root", "out", "cache")
    numbers = ("stride", "grid", "batch_size", "timeout", "seed")
    chosen = ProbeOptions(
        kinds=kinds,
        workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        **{name: getattr(options, name) for name in names + numbers},
    )
    return run_probe(chosen, device, overrides)
