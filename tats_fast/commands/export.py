"""``tats-fast export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tats_fast.commands.running import add_model_overrides, model_overrides


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    export = commands.add_parser("export", help="weights for another library, with a model card")
    export.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="run, checkpoint folder or file"
    )
    export.add_argument("--to", required=True, choices=("huggingface",), help="format")
    export.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    add_model_overrides(export)
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from tats_fast.interchange import export_hugging_face, read_weights

    weights = read_weights(options.checkpoint, model_overrides(options.overrides))
    print(f"wrote {export_hugging_face(weights, Path(options.out).expanduser())}")
    return 0
