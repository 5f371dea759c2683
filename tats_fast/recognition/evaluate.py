"""``tats-fast evaluate``: multi-view accuracy of a fine-tuned classifier, and its files.

Legend: M readable videos, K classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tats_fast.config import ConfigError, FinetuneConfig
from tats_fast.data.files import shown, write_bytes, write_csv, write_json
from tats_fast.data.labels import class_ids
from tats_fast.data.lists import Video, read_videos
from tats_fast.interchange import build_classifier, read_weights
from tats_fast.recognition.accuracy import Accuracy, best_first, confusion_matrix, measure
from tats_fast.recognition.confusion import confusion_picture, confusion_rows
from tats_fast.recognition.features import encoder_hash
from tats_fast.recognition.scores import Scored, Views, class_scores, merged
from tats_fast.run_folder import STEP_PREFIX, list_checkpoints

LOGGER = logging.getLogger("tats_fast")
FOLDER = "evaluation"
TOP = 5
_WORST = 5  # classes that the printed table names


class Processes(Protocol):
    """This process among all of the evaluation, as ``tats_fast.engine.distributed.World``."""

    rank: int
    size: int
    device: torch.device

    def gather(self, value: object) -> list:
        """The value of every process, by rank."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command line of ``tats-fast evaluate``. None = as the fine-tuned run says."""

    checkpoint: str
    list: str | None = None
    root: str | None = None
    """Where the list's paths start; none = the list's own folder, or the run's ``data.root`` if
    the list is the run's too."""
    stride: int | None = None
    clips: int | None = None
    crops: int | None = None
    out: str | None = None
    """Folder to write; none = ``evaluation`` in the run's folder, or here where there is none."""
    batch_size: int = 16
    workers: int = 1
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option}={getattr(self, name)}: must be at least 1")
        if not self.timeout > 0:
            raise ConfigError(f"--timeout={self.timeout}: must be above 0")
        self.views(None)

    def views(self, run: FinetuneConfig | None) -> Views:
        """The views asked for; what is not, is as ``run`` says, or else as ``Views`` does."""
        chosen = {}
        for name in ("stride", "clips", "crops"):
            value = getattr(self, name)
            if value is None and run is not None:
                value = getattr(run.data, name)
            if value is not None:
                chosen[name] = value
        return Views(**chosen)


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: everything that its files hold."""

    classes: list[str]
    videos: Sequence[Video]
    labels: Tensor
    """Class id of every listed video, (M + unreadable,) int64."""
    scored: Scored
    accuracy: Accuracy
    """Over the readable videos."""
    lower_bound: Accuracy
    """The same with every unreadable video counted as wrong."""
    order: Tensor
    """Class ids of each readable video from the most probable on, (M, K) int64."""
    confusion: Tensor
    """(K, K) int64, rows true."""


def evaluation(
    classes: Sequence[str],
    videos: Sequence[Video],
    labels: Tensor,
    scored: Scored,
    key: str = "--list",
) -> Evaluation:
    """Accuracies of ``scored``, whose positions are those in ``videos`` and ``labels``.

    key: what messages call the list.

    Raises:
        ConfigError: no video could be read, or the scores are not finite.
    """
    if not scored.numbers:
        path, reason = scored.bad[0]
        raise ConfigError(f"{key}: no video could be read, for example {shown(path)}: {reason}")
    true, lost = labels[scored.numbers], labels[scored.bad_numbers]
    try:
        order = best_first(scored.probabilities)
    except ValueError as error:
        raise ConfigError(f"--checkpoint: {error}") from error
    return Evaluation(
        classes=[shown(name) for name in classes],
        videos=videos,
        labels=labels,
        scored=scored,
        accuracy=measure(scored.probabilities, true),
        lower_bound=measure(scored.probabilities, true, lost),
        order=order,
        confusion=confusion_matrix(order[:, 0], true, len(classes)),
    )


def run_evaluation(
    options: EvaluateOptions, world: Processes, overrides: dict[str, Any] | None = None
) -> int:
    """The command. The first process prints a table and writes the files, and returns 1 if a file
    was unreadable; 0 otherwise.

    overrides: model fields, as for ``load_encoder``.

    Raises:
        ConfigError: bad list, labels, checkpoint or settings; one line.
    """
    path = Path(options.checkpoint).expanduser()
    weights = read_weights(path, {"attention": "auto", **(overrides or {})})
    classifier = build_classifier(weights, world.device, f"--checkpoint={path}")
    run = weights.run if isinstance(weights.run, FinetuneConfig) else None
    views = options.views(run)
    spec, root = options.list, options.root
    if spec is None:
        if run is None or run.data.eval is None:
            raise ConfigError(
                "--list: not given, and the checkpoint is no run with data.eval; "
                "give a list of path and label"
            )
        spec, root = run.data.eval, root or run.data.root
    videos = read_videos(spec, root, key="--list")
    labels = class_ids(videos, classifier.classes)
    folder = default_folder(path) if options.out is None else Path(options.out).expanduser()
    _require_writable(folder)
    part = class_scores(
        classifier,
        videos,
        views,
        batch_size=options.batch_size,
        workers=options.workers,
        timeout=options.timeout,
        rank=world.rank,
        world_size=world.size,
    )
    parts = world.gather(part)
    if world.rank > 0:
        return 0  # torchrun would end all for another code, the first process in its writing too
    found = evaluation(classifier.classes, videos, labels, merged(parts))
    facts = {
        "checkpoint": options.checkpoint,
        "encoder": encoder_hash(classifier.encoder),
        "list": spec,
        "root": root,
        "views": asdict(views),
        "precision": "bf16" if world.device.type == "cuda" else "fp32",
    }
    write_files(folder, found, facts)
    for bad_path, reason in found.scored.bad:
        LOGGER.warning("unreadable %s: %s", shown(bad_path), reason)
    print(table(found, views))
    print(f"wrote {folder}: evaluation.json, predictions.csv, per_class.csv, confusion.csv, .png")
    return 1 if found.scored.bad else 0


def default_folder(checkpoint: Path) -> Path:
    """``evaluation`` in the run that ``checkpoint`` is or belongs to, or else here."""
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    if folder.name.startswith(STEP_PREFIX):
        return folder.resolve().parent.parent / FOLDER
    return folder / FOLDER if list_checkpoints(folder) else Path(FOLDER)


def write_files(folder: Path, found: Evaluation, facts: dict[str, Any]) -> None:
    """Write the evaluation's files into ``folder``, ``evaluation.json`` last.

    facts: what else ``evaluation.json`` is to say.

    Raises:
        ConfigError: the folder cannot be written.
    """
    names, scored = found.classes, found.scored
    write_csv(folder / "predictions.csv", prediction_rows(found))
    write_csv(folder / "per_class.csv", class_rows(found))
    write_csv(folder / "confusion.csv", confusion_rows(found.confusion, names))
    title = f"top-1 {percent(found.accuracy.top1)} %"
    subtitle = f"{len(names)} classes, {len(scored.numbers)} videos"
    picture = confusion_picture(found.confusion, names, title, subtitle)
    write_bytes(folder / "confusion.png", picture)
    record = {
        **facts,
        "videos": len(found.videos),
        "readable": len(scored.numbers),
        "accuracy": _totals(found.accuracy),
        "lower_bound": _totals(found.lower_bound),
        "unreadable": scored.bad,
        "classes": names,
    }
    write_json(folder / "evaluation.json", record)


def prediction_rows(found: Evaluation) -> Iterator[list[object]]:
    """A header, then per readable video path, class and the most probable classes."""
    top = min(TOP, len(found.classes))
    ranks = range(1, top + 1)
    yield [
        "path",
        "label",
        *(f"{name}_{n}" for n in ranks for name in ("predicted", "probability")),
    ]
    rows = zip(found.scored.numbers, found.scored.probabilities, found.order[:, :top], strict=True)
    for number, probabilities, best in rows:
        path, label = shown(found.videos[number].path), found.classes[found.labels[number]]
        pairs = ((found.classes[i], f"{probabilities[i]:.6f}") for i in best.tolist())
        yield [path, label, *(cell for pair in pairs for cell in pair)]


def class_rows(found: Evaluation) -> Iterator[list[object]]:
    """A header, then per class its accuracy, and the class that it was most often taken for."""
    yield ["class", "videos", "unreadable", "right", "accuracy", "taken_for", "times"]
    lost = torch.bincount(found.labels[found.scored.bad_numbers], minlength=len(found.classes))
    for number, name in enumerate(found.classes):
        row = found.confusion[number]
        share = found.accuracy.per_class[number]
        other, times = _taken_for(found, number)
        counts = [int(row.sum()), int(lost[number]), int(row[number])]
        yield [name, *counts, None if share is None else f"{share:.6f}", other, times]


def table(found: Evaluation, views: Views) -> str:
    """The evaluation in words: accuracies, then the worst classes."""
    bad = found.scored.bad
    how = f"stride {views.stride}" if views.stride else "segments"
    kinds = [("readable videos", found.accuracy)]
    if bad:
        kinds.append(("unreadable wrong", found.lower_bound))
    lines = [
        f"{len(found.scored.numbers)} videos, {len(found.classes)} classes, "
        f"{views.clips} clips x {views.crops} crops, {how}; {len(bad)} unreadable",
        f"{'':<18} {'top-1':>6} {'top-5':>6} {'mean class':>10}",
    ]
    for name, accuracy in kinds:
        top5 = "-" if accuracy.top5 is None else percent(accuracy.top5)
        lines.append(
            f"{name:<18} {percent(accuracy.top1):>6} {top5:>6} {percent(accuracy.mean_class):>10}"
        )
    shares = found.accuracy.per_class
    flawed = [i for i, share in enumerate(shares) if share is not None and share < 1]
    for number in sorted(flawed, key=shares.__getitem__)[:_WORST]:
        row = found.confusion[number]
        other, times = _taken_for(found, number)
        lines.append(
            f"{percent(shares[number]):>6}  {found.classes[number]}: {row[number]} of {row.sum()}, "
            f"{times} taken for {other}"
        )
    if flawed:
        lines.insert(len(lines) - min(len(flawed), _WORST), "worst classes, top-1:")
    return "\n".join(lines)


def percent(share: float) -> str:
    """0.8315 -> 83.15, as papers give it."""
    return f"{100 * share:.2f}"


def _taken_for(found: Evaluation, number: int) -> tuple[str | None, int]:
    """The class that videos of class ``number`` were most often mistaken for, and how often."""
    mistakes = found.confusion[number].clone()
    mistakes[number] = 0
    times = int(mistakes.max())
    return (found.classes[int(mistakes.argmax())] if times else None), times


def _totals(accuracy: Accuracy) -> dict[str, float | None]:
    return {name: getattr(accuracy, name) for name in ("top1", "top5", "mean_class")}


def _require_writable(folder: Path) -> None:
    """Before hours of work rather than after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={folder}: cannot be written: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--out={folder}: cannot be written; choose another folder")
