"""``tats-fast visualize`` and ``tats-fast doctor``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tats_fast.commands.running import Command, Device
from tats_fast.config.options import chosen, option


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions(Device):
    """``tats-fast visualize``."""

    checkpoint: str = option(help="checkpoint folder or run folder", metavar="PATH")
    video: tuple[str, ...] = option(
        help="video, folder of videos or list file; may be repeated",
        action="append",
        metavar="PATH",
    )
    out: str = option("report", "folder to write", metavar="DIR")
    seed: int = option(0, "seed of the draws")


def _visualize(arguments: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.report.visualize import write_report

    options = chosen(VisualizeOptions, arguments)
    device = str(pick_device(options.device))
    page = write_report(
        options.checkpoint, options.video, Path(options.out), seed=options.seed, device=device
    )
    print(f"wrote {page}")
    return 0


def _doctor(_arguments: argparse.Namespace) -> int:
    from tats_fast.doctor import report_lines

    print("\n".join(report_lines()))
    return 0


VISUALIZE = Command(
    "visualize",
    "page of masks, heat maps, reconstructions",
    _visualize,
    options=(VisualizeOptions,),
)
DOCTOR = Command("doctor", "what this machine can run, and why not the rest", _doctor)
