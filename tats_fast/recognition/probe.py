"""``tats-fast probe``: how much of the classes can be read from frozen features."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tats_fast.config import ConfigError
from tats_fast.config.options import chosen
from tats_fast.config.schema import PROBES
from tats_fast.data.files import require_writable, shown, write_json
from tats_fast.data.labels import label_numbers, warn_of_odd_names
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.opening import BadFiles
from tats_fast.interchange import build_encoder, read_weights
from tats_fast.models.encoder import VideoEncoder
from tats_fast.recognition.accuracy import top_accuracy
from tats_fast.recognition.decoding import progress_of
from tats_fast.recognition.features import encoder_hash, video_features
from tats_fast.recognition.options import FeatureSettings, ProbeOptions
from tats_fast.recognition.probe_heads import train_probe

LOGGER = logging.getLogger("tats_fast")


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
    """Accuracies of all probes, and what they are over."""

    results: list[ProbeResult]
    classes: list[str]
    train_videos: int
    """Readable ones, which the probes were trained on."""
    eval_videos: int
    """Readable ones, which the accuracies are over."""
    bad_train: BadFiles
    bad_eval: BadFiles


def run_probe(
    options: ProbeOptions, device: torch.device | str, overrides: dict[str, Any] | None = None
) -> int:
    """Probe a model: print a table, and write ``probe.json`` into ``options.out``.

    Args:
        overrides: model fields, as for ``load_encoder``.

    Returns:
        The command's exit code, 0.

    Raises:
        ConfigError: bad lists, labels, checkpoint or settings; one line.
    """
    train = read_videos(options.train, options.root, key="train")
    evaluated = read_videos(options.eval, options.root, key="eval")
    # Before the checkpoint takes its time.
    warn_of_odd_names(label_numbers(train, evaluated)[2])
    out = Path(options.out)
    require_writable(out, "out")
    weights = read_weights(options.checkpoint, {"attention": "auto", **(overrides or {})})
    settings = chosen(FeatureSettings, options, weights)
    encoder = build_encoder(weights, device)
    report = probe_model(
        encoder,
        train,
        evaluated,
        kinds=options.kinds,
        settings=settings,
        cache=Path(options.cache) if options.cache else out / "features",
        seed=options.seed,
        shows=True,
    )
    for bad_path, reason in report.bad_train + report.bad_eval:
        LOGGER.warning("left out %s: %s", shown(bad_path), reason)
    used = asdict(options) | {"stride": settings.stride, "fps": settings.fps}
    record = {"options": used, "encoder": encoder_hash(encoder), **asdict(report)}
    write_json(out / "probe.json", record)
    print(table(report))
    print(f"wrote {out / 'probe.json'}")
    return 0


def probe_model(
    encoder: VideoEncoder,
    train_videos: Sequence[Video],
    eval_videos: Sequence[Video],
    *,
    kinds: Sequence[str] = PROBES,
    settings: FeatureSettings | None = None,
    cache: Path | None = None,
    seed: int = 0,
    shows: bool = False,
) -> ProbeReport:
    """Train probes on the encoder's features of one list and score them on another's.

    Runs on the encoder's device and leaves the encoder as it was. The evaluation list chooses
    nothing: hyper-parameters are chosen on a held-out part of the training list.

    Args:
        shows: a progress display on stderr.
        cache: folder that stores the features for the next call; none = they are not stored.

    Raises:
        ConfigError: a video without label, a class that only ``eval_videos`` has, fewer than two
            classes, or too few readable videos.
    """
    settings = settings or FeatureSettings()
    train_labels, eval_labels, classes = label_numbers(train_videos, eval_videos)
    with contextlib.ExitStack() as stack:
        if cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train, test = (
            video_features(
                encoder,
                videos,
                settings,
                cache,
                tokens="attentive" in kinds,
                title=f"{name} videos" if shows else None,
            )
            for name, videos in (("train", train_videos), ("eval", eval_videos))
        )
        for key, features in (("train", train), ("eval", test)):
            if not len(features.mean):
                path, reason = features.bad[0]
                raise ConfigError(
                    f"{key}: no video could be read, for example {shown(path)}: {reason}"
                )
            if not features.mean.isfinite().all():
                raise ConfigError("checkpoint: the encoder's features are not finite")
        device = next(encoder.parameters()).device
        labels, true = train_labels[train.indices].to(device), eval_labels[test.indices].to(device)
        results = []
        progress = stack.enter_context(progress_of("probes" if shows else None, len(kinds)))
        for kind in kinds:
            train_inputs, test_inputs = (
                part.tokens if kind == "attentive" else part.mean.to(device)
                for part in (train, test)
            )
            try:
                trained = train_probe(kind, train_inputs, labels, len(classes), seed=seed)
            except ValueError as error:
                raise ConfigError(f"train: {error}") from error
            scores = trained.scores(test_inputs)
            top1 = top_accuracy(scores, true)
            top5 = top_accuracy(scores, true, 5) if len(classes) > 5 else None
            results.append(ProbeResult(kind, top1, top5, trained.hyper, trained.held_out))
            progress.step()
    return ProbeReport(results, classes, len(labels), len(true), train.bad, test.bad)


def table(report: ProbeReport) -> str:
    """The report in words, one line per probe."""
    lines = [f"{'probe':<10} {'top-1':>6} {'top-5':>6} {'held-out':>8}  chosen"]
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
