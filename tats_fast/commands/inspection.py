"""``tats-fast visualize``, ``tats-fast compare``, ``tats-fast reference``, ``tats-fast doctor``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tats_fast.commands.running import Command, Device
from tats_fast.config import ConfigError
from tats_fast.config.options import Options, chosen, option
from tats_fast.data.files import require_writable, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    seed: int = option(0, "seed of the draws", at_least=0)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """``tats-fast compare``."""

    folder: str = option(help="folder of a run", flag="folder")
    reference: str = option(
        help="reference curves (docs/reference), or the folder of another run", flag="reference"
    )
    out: str | None = option(
        None, "picture to write (default: compare.png in the run's folder)", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(Options):
    """``tats-fast reference``."""

    runs: tuple[str, ...] = option(
        help="folders of runs that differ in their seed", flag="runs", nargs="+", metavar="PATH"
    )
    made_by: str = option(help="the command that makes such a run", metavar="TEXT")
    hardware: str = option("", "what they ran on", unset="this machine", metavar="TEXT")
    out: str = option(help="JSON file to write, with a picture beside it", metavar="FILE")


def _visualize(arguments: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.report.visualize import write_report

    options = chosen(VisualizeOptions, arguments)
    require_writable(Path(options.out), "out")
    device = str(pick_device(options.device))
    page = write_report(
        options.checkpoint, options.video, Path(options.out), seed=options.seed, device=device
    )
    print(f"wrote {page}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from tats_fast.report.compare import compare, comparison_figure, lines
    from tats_fast.report.reference import differences, read_reference, read_runs

    options = chosen(CompareOptions, arguments)
    run = read_runs([options.folder], command="", hardware="")
    reference = read_reference(options.reference)
    comparisons = compare(run, reference)
    if not comparisons:
        raise ConfigError(f"reference={options.reference}: no curve and step in common")
    if changed := differences(run.config, reference.config):
        print(f"another configuration than the reference's (in brackets): {changed}")
    print("\n".join(lines(comparisons)))
    out = Path(options.out) if options.out else Path(options.folder) / "compare.png"
    _draw(comparison_figure(reference, run), out)
    return 0


def _reference(arguments: argparse.Namespace) -> int:
    from tats_fast.report.compare import comparison_figure
    from tats_fast.report.reference import read_runs, write_reference

    options = chosen(ReferenceOptions, arguments)
    out = Path(options.out)
    if out.suffix != ".json":
        raise ConfigError(f"out={out}: must end in .json")
    reference = read_runs(options.runs, options.made_by, options.hardware)
    write_reference(reference, out)
    print(f"wrote {out}")
    _draw(comparison_figure(reference), out.with_suffix(".png"))
    return 0


def _draw(figure: Figure, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    print(f"wrote {path}")


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
COMPARE = Command(
    "compare",
    "is a run healthy: its curves over a reference's",
    _compare,
    options=(CompareOptions,),
)
REFERENCE = Command(
    "reference",
    "curves of finished runs, for others to compare theirs with",
    _reference,
    options=(ReferenceOptions,),
)
DOCTOR = Command("doctor", "what this machine can run, and why not the rest", _doctor)
