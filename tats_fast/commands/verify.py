"""``tats-fast verify``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    verify = commands.add_parser("verify", help="find the files that cannot be trained on")
    verify.add_argument("--list", metavar="FILE", help="list file, as data.train")
    verify.add_argument(
        "--root", metavar="DIR", help="where a list's paths start; without a list: all videos below"
    )
    verify.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    verify.add_argument(
        "--mode",
        default="quick",
        choices=("quick", "full"),
        help="decode the first frame and the last keyframe (default), or every frame",
    )
    verify.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    verify.add_argument(
        "--timeout", type=float, metavar="S", help="seconds per file (default: 60 quick, 600 full)"
    )
    verify.add_argument(
        "--min-share",
        type=float,
        default=0.5,
        metavar="X",
        help="share of its claimed length below which a file is bad (default: 0.5)",
    )
    verify.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="frames that a clip spans, (model.num_frames - 1) * data.stride + 1 (default: 61)",
    )
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from tats_fast.prepare.verify import VerifyOptions, default_window, listed_videos, verify

    settings = VerifyOptions(
        mode=options.mode,
        workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        timeout=options.timeout,
        min_share=options.min_share,
        window=default_window() if options.frames is None else options.frames,
    )
    videos = listed_videos(options.list, options.root)
    return 1 if verify(videos, Path(options.out).expanduser(), settings, options.list) else 0
