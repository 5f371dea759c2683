"""The probes of a run for its page, as ``tats-fast probe --out RUN/probe`` leaves them.

``RUN/probe_untrained``, where there is one, holds the same probes of an encoder before training.
"""

from __future__ import annotations

import html
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.video import DecodeError
from tats_fast.data.views import decode_views, dense_views, segment_views, side_crops
from tats_fast.report.images import data_uris
from tats_fast.report.pictures import GAP, fit, strip, token_frames

LOGGER = logging.getLogger("tats_fast")

PROBED, CONTROL = "probe/probe.json", "probe_untrained/probe.json"
SAME = ("train", "eval", "root", "stride")  # options that make two probes comparable

MAX_EXAMPLES = 12
"""Classes of which a page shows a video."""
EXAMPLES_BUDGET = 500_000
"""Bytes of their pictures."""

KIND_NAMES = {
    "linear": "linear",
    "linear_bn": "linear, standardised features",
    "knn": "nearest neighbours",
    "attentive": "attentive",
}


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What can be read from frozen features of labelled videos."""

    top1: dict[str, float]
    """Accuracy by kind of probe, in [0, 1]."""
    untrained: dict[str, float]
    """The same for an encoder before training; empty = not measured."""
    classes: list[str]
    train_videos: int
    eval_videos: int
    about: str = ""
    """The comment that heads the evaluation list."""
    examples: list[tuple[str, np.ndarray]]
    """Class and frames (F, S, S, 3) uint8 of one evaluation video each, for some classes."""


def read_probes(run: Path, encoder: str, model: ModelConfig) -> Probes | None:
    """The probes in the folder of a run; None where there are none of this encoder.

    Args:
        encoder: ``recognition.features.encoder_hash`` of the checkpoint that the page is about.
        model: for the size of the example clips.
    """
    record = _read(run / PROBED)
    if record is None:
        return None
    if record["encoder"] != encoder:
        LOGGER.warning("%s left out: it is about another checkpoint", run / PROBED)
        return None
    control = _read(run / CONTROL)
    if control is not None and any(_option(control, k) != _option(record, k) for k in SAME):
        LOGGER.warning("%s left out: it is about other videos or clips", run / CONTROL)
        control = None
    return Probes(
        top1=_top1(record),
        untrained={} if control is None else _top1(control),
        classes=record["classes"],
        train_videos=record["train_videos"],
        eval_videos=record["eval_videos"],
        about=leading_comment(Path(_option(record, "eval"))),
        examples=_examples(record, model),
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


def _top1(record: dict[str, Any]) -> dict[str, float]:
    return {result["kind"]: float(result["top1"]) for result in record["results"]}


def _option(record: dict[str, Any], name: str) -> Any:
    return record["options"].get(name)


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
    try:
        videos = read_videos(_option(record, "eval"), _option(record, "root"), key="eval")
    except ConfigError as error:
        LOGGER.warning("probes without example videos: %s", error)
        return []
    first: dict[str, Video] = {}
    for video in videos:
        first.setdefault(str(video.label), video)
    examples = []
    for name in record["classes"][:MAX_EXAMPLES]:
        try:
            if name in first:
                clip = _clip(first[name].path, _option(record, "stride"), model)
                examples.append((name, token_frames(clip, model)))
        except DecodeError as error:
            LOGGER.warning("no example of class %s: %s", name, error)
    return examples


def _clip(path: str, stride: int, model: ModelConfig) -> np.ndarray:
    """The clip (T, S, S, 3) that ``tats-fast probe`` takes from a video."""

    def choose(total: int) -> list[list[int]]:
        if stride == 0:
            return segment_views(total, model.num_frames, 1)
        return dense_views(total, model.num_frames, stride, 1)

    return decode_views(path, choose, side_crops(1), model.image_size)[0, 0]


def probes_html(probes: Probes) -> str:
    """The section of the page: what was asked, a table of accuracies, a strip per class."""
    count, questions = len(probes.classes), probes.eval_videos
    text = (
        f"The encoder is frozen. Small classifiers learn to tell {count} classes from its features "
        f"of {probes.train_videos} labelled videos, and are asked about {questions} others."
    )
    deviation = 50 / math.sqrt(questions)
    note = (
        f"Share of right answers. Which {questions} videos are asked moves it by up to ± "
        f"{deviation:.0f} points (one standard deviation)."
    )
    if probes.untrained:
        text += (
            " “Before training” is the same encoder with its starting weights: what can be read "
            "from that, training did not put there."
        )
    about = f"<p class='lead'>{html.escape(probes.about)}</p>" if probes.about else ""
    return (
        f"<section><h2>What the features know</h2><p class='lead'>{text}</p>{about}"
        f"{_table(probes)}<p class='sub'>{note}</p>{_strips(probes.examples)}</section>"
    )


def _table(probes: Probes) -> str:
    columns = {"this encoder": probes.top1}
    if probes.untrained:
        columns["before training"] = probes.untrained
    head = "".join(f"<th scope='col'>{name}</th>" for name in (*columns, "guessing"))
    guessing = f"<td>{_percent(1 / len(probes.classes))}</td>"
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(KIND_NAMES.get(kind, kind))}</th>"
        + "".join(f"<td>{_percent(column.get(kind))}</td>" for column in columns.values())
        + f"{guessing}</tr>"
        for kind in probes.top1
    )
    return (
        f"<div class='scroll'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _strips(examples: list[tuple[str, np.ndarray]]) -> str:
    if not examples:
        return ""
    pictures = [strip(fit(frames), background=GAP) for _, frames in examples]
    rows = []
    uris = data_uris(pictures, EXAMPLES_BUDGET)
    for (name, _), picture, uri in zip(examples, pictures, uris, strict=True):
        height, width = picture.shape[:2]
        label, alt = html.escape(name), html.escape(f"a video of class {name}", quote=True)
        rows.append(
            f"<div class='row'><span class='stick who'>{label}</span><img src='{uri}' "
            f"width='{width}' height='{height}' alt='{alt}'></div>"
        )
    return (
        "<h4>One video of each class, in order of time</h4><div class='strips' tabindex='0' "
        f"role='group' aria-label='a video of each class'>{''.join(rows)}</div>"
    )
