"""``tats-fast visualize``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    visualize = commands.add_parser("visualize", help="page of masks, heat maps, reconstructions")
    visualize.add_argument("--checkpoint", required=True, help="checkpoint folder or run folder")
    visualize.add_argument(
        "--video",
        required=True,
        action="append",
        help="video, folder of videos or list file; may be repeated",
    )
    visualize.add_argument("--out", default="report", help="folder to write (default: report)")
    visualize.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    visualize.add_argument("--seed", type=int, default=0, help="seed of the draws")
    visualize.set_defaults(run=_visualize)


def _visualize(options: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.report.visualize import write_report

    device = pick_device(options.device)
    page = write_report(
        options.checkpoint, options.video, Path(options.out), seed=options.seed, device=str(device)
    )
    print(f"wrote {page}")
    return 0
