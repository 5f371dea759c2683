"""The probes of a run for its page, as ``tats-fast probe --out RUN/probe`` leaves them.

``RUN/probe_untrained``, where there is one, holds the same probes of an encoder before training,
and ``RUN/probe_others.json`` what other runs reached in them, top-1 of every run by kind of probe:
``{"their name": {"knn": [0.7, 0.8]}}``.
"""

from __future__ import annotations

import html
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.data.files import shown
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.opening import DecodeError
from tats_fast.interchange import build_encoder, read_weights
from tats_fast.recognition.decoding import decoded_views
from tats_fast.recognition.features import encoder_hash
from tats_fast.recognition.options import Views
from tats_fast.report.markup import strip_group, strip_images, strip_row, table_html
from tats_fast.report.pictures import token_frames

LOGGER = logging.getLogger("tats_fast")

PROBED, CONTROL = "probe/probe.json", "probe_untrained/probe.json"
OTHERS = "probe_others.json"
SAME = ("train", "eval", "root", "stride", "fps")  # options that make two probes comparable
MAX_EXAMPLES = 12  # classes of which a page shows a video
EXAMPLES_BUDGET = 500_000  # bytes of their pictures
KIND_NAMES = {"linear_bn": "linear, standardised features", "knn": "nearest neighbours"}


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What can be read from frozen features of labelled videos."""

    top1: dict[str, float]
    """Accuracy by kind of probe, in [0, 1]."""
    untrained: dict[str, float]
    """The same for an encoder before training; empty = not measured."""
    others: dict[str, dict[str, list[float]]]
    """The same of other runs, by what they are called."""
    classes: list[str]
    train_videos: int
    eval_videos: int
    about: str = ""
    """The comment that heads the evaluation list."""
    examples: list[tuple[str, np.ndarray]]
    """Class and frames (F, S, S, 3) uint8 of one evaluation video each, for some classes."""


def read_probes(run: Path, checkpoint: Path) -> Probes | None:
    """The probes in the folder of a run; None if there are none of this checkpoint's encoder."""
    record = _read(run / PROBED)
    if record is None:
        return None
    options, weights = record["options"], read_weights(checkpoint, {"attention": "auto"})
    if record["encoder"] != encoder_hash(build_encoder(weights)):
        LOGGER.warning("%s left out: it is about another checkpoint", run / PROBED)
        return None
    control = _read(run / CONTROL)
    if control is not None and any(control["options"].get(k) != options.get(k) for k in SAME):
        LOGGER.warning("%s left out: it is about other videos or clips", run / CONTROL)
        control = None
    return Probes(
        top1=_top1(record),
        untrained={} if control is None else _top1(control),
        others=_read_others(run / OTHERS),
        classes=record["classes"],
        train_videos=record["train_videos"],
        eval_videos=record["eval_videos"],
        about=leading_comment(Path(options["eval"])),
        examples=_examples(record, weights.model),
    )


def _read(path: Path) -> dict[str, Any] | None:
    """A ``probe.json``; None where there is none or it cannot be used."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _top1(record)
        missing = {"encoder", "options", "classes", "train_videos", "eval_videos"} - set(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        missing = {"readable content"}
    if missing:
        LOGGER.warning("%s left out: no %s in it", path, ", ".join(sorted(missing)))
        return None
    return record


def _read_others(path: Path) -> dict[str, dict[str, list[float]]]:
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): {str(kind): [float(share) for share in runs] for kind, runs in kinds.items()}
            for name, kinds in groups.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        LOGGER.warning("%s left out: not readable", path)
        return {}


def _top1(record: dict[str, Any]) -> dict[str, float]:
    return {result["kind"]: float(result["top1"]) for result in record["results"]}


def leading_comment(path: Path) -> str:
    """The text of the ``#`` lines at the head of a list file, as one line; "" without any."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ").rstrip() for line in lines[:end])


def _examples(record: dict[str, Any], model: ModelConfig) -> list[tuple[str, np.ndarray]]:
    """The first evaluation video of each class, as the probe saw it; [] if they are gone."""
    options = record["options"]
    try:
        videos = read_videos(options["eval"], options.get("root"), key="eval")
    except ConfigError as error:
        LOGGER.warning("probes without example videos: %s", error)
        return []
    first: dict[str, Video] = {}
    for video in videos:
        first.setdefault(str(video.label), video)
    view = Views(stride=options["stride"], fps=options.get("fps"), clips=1, crops=1)
    examples = []
    for name in filter(first.__contains__, record["classes"][:MAX_EXAMPLES]):
        try:
            clip = decoded_views(first[name].path, view, model)[0]
        except DecodeError as error:
            LOGGER.warning("no example of class %s: %s", name, error)
        else:
            examples.append((name, token_frames(clip, model)))
    return examples


def probes_html(probes: Probes) -> str:
    """The section of the page: what was asked, a table of accuracies, a strip per class."""
    classes, videos = len(probes.classes), probes.eval_videos
    text = (
        f"The encoder is frozen. Small classifiers learn to tell {classes} classes apart by its "
        f"features of {probes.train_videos} labelled videos, and are asked about {videos} others."
    )
    if probes.untrained:
        text += (
            " “Before training” is the same encoder with its initial weights: what can be read "
            "from those did not come from training."
        )
    about = f"<p class='lead'>{html.escape(probes.about)}</p>" if probes.about else ""
    note = (
        f"Share of right answers. With {videos} videos asked about, its standard deviation is up "
        f"to ± {50 / math.sqrt(videos):.0f} points."
    )
    return (
        f"<section><h2>What the features know</h2><p class='lead'>{text}</p>{about}"
        f"{_table(probes)}<p class='sub'>{note}</p>{_strips(probes.examples)}</section>"
    )


def _table(probes: Probes) -> str:
    guessing = dict.fromkeys(probes.top1, 1 / len(probes.classes))
    single = {
        "this encoder": probes.top1,
        "before training": probes.untrained,
        "guessing": guessing,
    }
    columns = {
        name: {kind: [share] for kind, share in column.items()} for name, column in single.items()
    }
    columns = {name: column for name, column in (columns | probes.others).items() if column}
    texts = [
        {kind: percent(shares) for kind, shares in column.items()} for column in columns.values()
    ]
    rows = (
        (KIND_NAMES.get(kind, kind), [text.get(kind, "–") for text in texts])
        for kind in probes.top1
    )
    return table_html(list(columns), rows)


def percent(shares: Sequence[float]) -> str:
    """One share as "50.0%", several as the span that they fill: "48.0 to 52.5%"."""
    texts = sorted({f"{100 * share:.1f}" for share in shares}, key=float)
    return f"{' to '.join([texts[0], *texts[1:][-1:]])}%" if texts else "–"


def _strips(examples: list[tuple[str, np.ndarray]]) -> str:
    if not examples:
        return ""
    described = [(f"a video of class {shown(name)}", frames) for name, frames in examples]
    images = strip_images(described, EXAMPLES_BUDGET)
    rows = [strip_row(name, image) for (name, _), image in zip(examples, images, strict=True)]
    return (
        "<h4>One video of each class, in order of time</h4>"
        f"{strip_group('a video of each class', rows)}"
    )
