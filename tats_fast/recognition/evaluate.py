"""``tats-fast evaluate``: multi-view accuracy of a fine-tuned classifier."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from tats_fast.config import ConfigError, FinetuneConfig
from tats_fast.config.options import chosen
from tats_fast.data.bad_files import drop_quarantined
from tats_fast.data.files import require_writable, shown
from tats_fast.data.labels import class_ids, classes_file
from tats_fast.data.lists import read_videos
from tats_fast.interchange import build_classifier, read_weights
from tats_fast.recognition.evaluation_result import FOLDER, make_evaluation, table, write_files
from tats_fast.recognition.features import encoder_hash
from tats_fast.recognition.options import EvaluateOptions, Views
from tats_fast.recognition.scores import class_scores, merged
from tats_fast.run_folder import STEP_PREFIX, list_checkpoints

LOGGER = logging.getLogger("tats_fast")


class Processes(Protocol):
    """This process among all of the evaluation, as ``tats_fast.engine.distributed.World``."""

    rank: int
    size: int
    device: torch.device

    def gather(self, value: object) -> list:
        """The value of every process, by rank."""


def run_evaluation(
    options: EvaluateOptions, world: Processes, overrides: dict[str, Any] | None = None
) -> int:
    """Evaluate a classifier; the first process prints a table and writes the files.

    Args:
        overrides: model fields, as for ``load_encoder``.

    Returns:
        The command's exit code: 1 if a file was unreadable, and on the first process only; else 0.

    Raises:
        ConfigError: bad list, labels, checkpoint or settings; one line.
    """
    path = Path(options.checkpoint)
    weights = read_weights(path, {"attention": "auto", **(overrides or {})})
    classifier = build_classifier(weights, world.device, f"checkpoint={path}")
    run = weights.run if isinstance(weights.run, FinetuneConfig) else None
    views = chosen(Views, options, weights if run is None else run.data)
    spec, root, quarantine = options.list, options.root, None
    if spec is None:
        if run is None or run.data.eval is None:
            raise ConfigError(
                "list: not given, and the checkpoint is no run with data.eval; "
                "give a list of path and label"
            )
        spec, root, quarantine = run.data.eval, root or run.data.root, run.data.quarantine
    listed = read_videos(spec, root, key="list")
    if quarantine is not None and not os.path.exists(os.path.expanduser(quarantine)):
        LOGGER.warning("data.quarantine=%s is not there: no video is left out", quarantine)
        quarantine = None
    videos = drop_quarantined(listed, quarantine)
    named = run is not None and _lists_are_here(run) and classes_file(run.data) is None
    labels = class_ids(videos, classifier.classes, named=named)
    folder = default_folder(path) if options.out is None else Path(options.out)
    require_writable(folder, "out")
    part = class_scores(
        classifier,
        videos,
        views,
        batch_size=options.batch_size,
        workers=options.workers,
        timeout=options.timeout,
        rank=world.rank,
        world_size=world.size,
        shows=world.is_main,
    )
    parts = world.gather(part)
    if world.rank > 0:
        return 0  # torchrun would end all for another code, the first process in its writing too
    result = make_evaluation(classifier.classes, videos, labels, merged(parts))
    facts = {
        "checkpoint": options.checkpoint,
        "encoder": encoder_hash(classifier.encoder),
        "list": spec,
        "root": root,
        "views": asdict(views),
        "precision": "bf16" if world.device.type == "cuda" else "fp32",
    }
    write_files(folder, result, facts)
    for bad_path, reason in result.scored.bad:
        LOGGER.warning("unreadable %s: %s", shown(bad_path), reason)
    print(table(result, views))
    if len(videos) < len(listed):
        left = len(listed) - len(videos)
        print(f"without {left} of the list's {len(listed)} videos, which data.quarantine names")
    print(f"wrote {folder}: evaluation.json, predictions.csv, per_class.csv, confusion.csv, .png")
    return 1 if result.scored.bad else 0


def _lists_are_here(run: FinetuneConfig) -> bool:
    """Otherwise nobody knows whether there was a ``classes.txt`` beside them."""
    lists = run.data.train_lists
    return bool(lists) and os.path.exists(os.path.expanduser(lists[0].list))


def default_folder(checkpoint: Path) -> Path:
    """``evaluation`` in the run that ``checkpoint`` is or belongs to, or else here."""
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    if folder.name.startswith(STEP_PREFIX):
        return folder.resolve().parent.parent / FOLDER
    return folder / FOLDER if list_checkpoints(folder) else Path(FOLDER)
