"""``tats-fast export`` and ``tats-fast import``."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from tats_fast.commands.running import MODEL_OVERRIDE, Command, model_overrides
from tats_fast.config.checks import require
from tats_fast.config.options import FromCheckpoint, Options, chosen, option

LOGGER = logging.getLogger("tats_fast")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(FromCheckpoint):
    """``tats-fast export``."""

    to: str = option(help="format", choices=("huggingface", "onnx"))
    out: str = option(help="folder to write, or file ending in .onnx", metavar="PATH")
    ema: bool = option(False, "the moving average of the weights (train.ema_decay)")
    push_to_hub: str | None = option(
        None,
        "repository on the Hugging Face hub to upload the folder to; a new one is private",
        metavar="OWNER/NAME",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.push_to_hub is None or self.to == "huggingface",
            "push_to_hub",
            self.push_to_hub,
            "needs --to=huggingface",
        )


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """``tats-fast import``."""

    source: str = option(
        help="folder of Transformers' VideoMAE, or a .pth of VideoMAE, VideoMAE V2 or AdaMAE",
        flag="--from",
        metavar="PATH",
    )
    out: str = option(help="file ending in .safetensors, or checkpoint folder", metavar="PATH")


def _export(arguments: argparse.Namespace) -> int:
    from tats_fast.interchange import export_hugging_face, read_weights
    from tats_fast.interchange.hub import require_upload, upload
    from tats_fast.interchange.onnx import export_onnx

    options = chosen(ExportOptions, arguments)
    if options.push_to_hub is not None:
        require_upload(options.push_to_hub, "push_to_hub")
    export = {"huggingface": export_hugging_face, "onnx": export_onnx}[options.to]
    overrides = model_overrides(arguments.overrides)
    if options.to == "onnx":
        overrides = {"attention": "sdpa", **overrides}  # a part of ONNX, as no other one is
    weights = read_weights(options.checkpoint, overrides, ema=options.ema)
    out = export(weights, Path(options.out))
    print(f"wrote {out}")
    if options.push_to_hub is not None:
        print(f"uploaded to {upload(out, options.push_to_hub)}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from tats_fast.interchange import read_weights, save_weights

    options = chosen(ImportOptions, arguments)
    weights = read_weights(options.source, model_overrides(arguments.overrides), key="source")
    out = save_weights(weights, Path(options.out))
    for note in weights.notes:
        LOGGER.info("%s", note)
    part = "encoder and decoder" if weights.has_decoder else "encoder"
    if weights.head is not None:
        part = f"encoder and classifier of {len(weights.classes)} classes"
    print(f"wrote {out}: {part}, from {weights.source}")
    return 0


EXPORT = Command(
    "export",
    "weights for another library, with a model card",
    _export,
    options=(ExportOptions,),
    override=MODEL_OVERRIDE,
)
IMPORT = Command(
    "import",
    "weights of Transformers or VideoMAE's own code",
    _import,
    options=(ImportOptions,),
    override=MODEL_OVERRIDE,
)
