"""``tats-fast probe``: how much of the classes can be read from frozen features."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tats_fast.config import ConfigError
from tats_fast.data.files import shown, write_json
from tats_fast.data.labels import label_numbers
from tats_fast.data.lists import Video, read_videos
from tats_fast.interchange import build_encoder, read_weights
from tats_fast.models.encoder import VideoEncoder
from tats_fast.recognition.features import (
    Features,
    FeatureSettings,
    encoder_hash,
    video_features,
)
from tats_fast.recognition.probe_heads import FITS, accuracy, probe

LOGGER = logging.getLogger("tats_fast")
KINDS = tuple(FITS)
BadFiles = list[tuple[str, str]]


@dataclass(frozen=True)
class ProbeResult:
    """One probe's accuracy on the evaluation list, shares in [0, 1]."""

    kind: str
    top1: float
    top5: float | None
    """None with five classes or fewer."""
    hyper: dict[str, Any]
    """Hyper-parameters chosen on the held-out part of the training list."""
    held_out: float
    """Top-1 on that part."""


@dataclass(frozen=True)
class ProbeReport:
    """What ``probe_model`` found."""

    results: list[ProbeResult]
    classes: list[str]
    train_videos: int
    """Readable ones, which the probes were trained on."""
    eval_videos: int
    """Readable ones, which the accuracies are over."""
    bad_train: BadFiles
    bad_eval: BadFiles
    """(path, reason) of the files left out."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The command line of ``tats-fast probe``."""

    checkpoint: str
    train: str
    eval: str
    out: str = "probe"
    root: str | None = None
    """Where the lists' paths start; none = each list's own folder."""
    cache: str | None = None
    """Folder of the features; none = ``features`` in ``out``."""
    kinds: tuple[str, ...] = KINDS
    stride: int | None = None
    """None = as the encoder was trained, or 4 where that is not known."""
    grid: int = 7
    batch_size: int = 16
    workers: int = 1
    timeout: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"--kinds={kind}: expected some of {', '.join(KINDS)}")
        if not self.kinds:
            raise ConfigError(f"--kinds=: empty; expected some of {', '.join(KINDS)}")


def run_probe(
    options: ProbeOptions, device: torch.device | str, overrides: dict[str, Any] | None = None
) -> int:
    """The command: print a table, write ``probe.json`` into ``options.out``; returns 0.

    overrides: model fields, as for ``load_encoder``.

    Raises:
        ConfigError: bad lists, labels, checkpoint or settings; one line.
    """
    settings = FeatureSettings(
        stride=4 if options.stride is None else options.stride,
        tokens="attentive" in options.kinds,
        grid=options.grid,
        batch_size=options.batch_size,
        workers=options.workers,
        timeout=options.timeout,
    )
    train = read_videos(options.train, options.root, key="--train")
    evaluated = read_videos(options.eval, options.root, key="--eval")
    label_numbers(train, evaluated)  # before the checkpoint takes its time
    out = Path(options.out).expanduser()
    cache = Path(options.cache).expanduser() if options.cache else out / "features"
    path = Path(options.checkpoint).expanduser()
    weights = read_weights(path, {"attention": "auto", **(overrides or {})})
    if options.stride is None and weights.stride is not None:
        settings = replace(settings, stride=weights.stride)
    options = replace(options, stride=settings.stride)
    encoder = build_encoder(weights, device)
    report = probe_model(
        encoder,
        train,
        evaluated,
        kinds=options.kinds,
        settings=settings,
        cache=cache,
        seed=options.seed,
    )
    for bad_path, reason in report.bad_train + report.bad_eval:
        LOGGER.warning("left out %s: %s", shown(bad_path), reason)
    record = {"options": asdict(options), "encoder": encoder_hash(encoder), **asdict(report)}
    write_json(out / "probe.json", record)
    print(table(report))
    print(f"wrote {out / 'probe.json'}")
    return 0


def probe_model(
    encoder: VideoEncoder,
    train_videos: Sequence[Video],
    eval_videos: Sequence[Video],
    *,
    kinds: Sequence[str] = KINDS,
    settings: FeatureSettings | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> ProbeReport:
    """Train probes on the encoder's features of one list and score them on another's.

    Runs on the encoder's device and leaves the encoder as it was. The evaluation list chooses
    nothing: hyper-parameters are chosen on a held-out part of the training list.

    Args:
        cache: folder that keeps the features for the next call; none = they are not kept.

    Raises:
        ConfigError: a video without label, a class that only ``eval_videos`` has, fewer than two
            classes, or too few readable videos.
    """
    if settings is None:
        settings = FeatureSettings(tokens="attentive" in kinds)
    train_labels, eval_labels, classes = label_numbers(train_videos, eval_videos)
    with contextlib.ExitStack() as stack:
        if cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train = video_features(encoder, train_videos, settings, cache)
        tested = video_features(encoder, eval_videos, settings, cache)
        for key, features in (("--train", train), ("--eval", tested)):
            _require_usable(key, features)
        device = next(encoder.parameters()).device
        known = train_labels[train.indices].to(device)
        true = eval_labels[tested.indices].to(device)
        results = []
        for kind in kinds:
            inputs, questions = (
                part.tokens if kind == "attentive" else part.mean.to(device)
                for part in (train, tested)
            )
            try:
                found = probe(kind, inputs, known, len(classes), seed=seed)
            except ValueError as error:
                raise ConfigError(f"--train: {error}") from error
            scores = found.scores(questions)
            top5 = accuracy(scores, true, 5) if len(classes) > 5 else None
            result = ProbeResult(kind, accuracy(scores, true), top5, found.hyper, found.held_out)
            results.append(result)
    return ProbeReport(results, classes, len(known), len(true), train.bad, tested.bad)


def table(report: ProbeReport) -> str:
    """The report in words, one line per probe."""
    head = f"{'probe':<10} {'top-1':>6} {'top-5':>6} {'held-out':>8}  chosen"
    lines = [head]
    for result in report.results:
        top5 = "-" if result.top5 is None else f"{100 * result.top5:.1f}"
        chosen = ", ".join(f"{name} {value:g}" for name, value in result.hyper.items())
        lines.append(
            f"{result.kind:<10} {100 * result.top1:>6.1f} {top5:>6} "
            f"{100 * result.held_out:>8.1f}  {chosen}"
        )
    lines.append(
        f"{len(report.classes)} classes; trained on {report.train_videos} videos "
        f"({len(report.bad_train)} unreadable), scored on {report.eval_videos} "
        f"({len(report.bad_eval)} unreadable)"
    )
    return "\n".join(lines)


def _require_usable(key: str, features: Features) -> None:
    """Something could be read, and the encoder made numbers of it."""
    if not len(features.mean):
        path, reason = features.bad[0]
        raise ConfigError(f"{key}: no video could be read, for example {shown(path)}: {reason}")
    if not features.mean.isfinite().all():
        raise ConfigError("--checkpoint: the encoder's features are not finite")
