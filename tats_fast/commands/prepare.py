"""``tats-fast prepare``."""

from __future__ import annotations

import argparse
import os

from tats_fast.config import ConfigError


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    prepare = commands.add_parser("prepare", help="lists and small copies from official files")
    datasets = ("ssv2", "kinetics400", "ucf101", "hmdb51", "folder")
    prepare.add_argument("dataset", choices=datasets, help="whose official files, or any folder")
    prepare.add_argument("--annotations", metavar="DIR", help="official files (not for folder)")
    prepare.add_argument("--videos", metavar="DIR", required=True, help="searched recursively")
    prepare.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    prepare.add_argument("--split", type=int, help="of ucf101 and hmdb51: 1, 2 or 3 (default: 1)")
    prepare.add_argument("--quarantine", metavar="FILE", help="bad files to leave out")
    prepare.add_argument("--hash", action="store_true", help="SHA-256 of each file")
    prepare.add_argument(
        "--transcode",
        nargs="?",
        const="h264",
        choices=("h264", "vp9", "mjpeg"),
        help="list small copies with many keyframes instead (default: h264)",
    )
    for name, text in (
        ("--short-side", "pixels of a copy's short side at most (default: 256)"),
        ("--gop", "frames from keyframe to keyframe in a copy (default: 16)"),
        ("--quality", "of copies: CRF or quantiser, smaller is better"),
        ("--workers", "processes (default: one per core)"),
    ):
        prepare.add_argument(name, type=int, metavar="N", help=text)
    prepare.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from tats_fast.prepare.prepare import Options, Recipe, prepare

    names = ("short_side", "gop", "quality")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if chosen and options.transcode is None:
        raise ConfigError(f"--{next(iter(chosen)).replace('_', '-')}: only with --transcode")
    return prepare(
        Options(
            dataset=options.dataset,
            videos=os.path.expanduser(options.videos),
            out=os.path.expanduser(options.out),
            annotations=options.annotations and os.path.expanduser(options.annotations),
            split=options.split,
            recipe=options.transcode and Recipe(options.transcode, **chosen),
            quarantine=options.quarantine and os.path.expanduser(options.quarantine),
            with_hash=options.hash,
            workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        )
    )
