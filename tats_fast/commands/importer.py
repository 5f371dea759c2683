"""``tats-fast import``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tats_fast.commands.running import add_model_overrides, model_overrides

LOGGER = logging.getLogger("tats_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    importer = commands.add_parser("import", help="weights of Transformers or VideoMAE's own code")
    importer.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        required=True,
        help="folder of Transformers' VideoMAE, or a .pth of VideoMAE, VideoMAE V2 or AdaMAE",
    )
    importer.add_argument(
        "--out", metavar="PATH", required=True, help="file ending in .pt, or checkpoint folder"
    )
    add_model_overrides(importer)
    importer.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    from tats_fast.interchange import read_weights, save_weights

    weights = read_weights(options.source, model_overrides(options.overrides), key="--from")
    out = save_weights(weights, Path(options.out).expanduser())
    for note in weights.notes:
        LOGGER.info("%s", note)
    part = "encoder and decoder" if weights.has_decoder else "encoder"
    if weights.head is not None:
        part = f"encoder and classifier of {len(weights.classes)} classes"
    print(f"wrote {out}: {part}, from {weights.source}")
    return 0
