"""``tats-fast evaluate``, ``tats-fast probe`` and ``tats-fast extract-features``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tats_fast.commands.running import MODEL_OVERRIDE, Command, Device, model_overrides
from tats_fast.config.options import chosen
from tats_fast.recognition.options import (
    EvaluateOptions,
    ExtractOptions,
    ExtractSettings,
    ProbeOptions,
)


def _evaluate(arguments: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import join_world
    from tats_fast.recognition.evaluate import run_evaluation

    overrides = model_overrides(arguments.overrides)
    options, device = chosen(EvaluateOptions, arguments), chosen(Device, arguments).device
    return run_evaluation(options, join_world(device, arguments.local_rank), overrides)


def _probe(arguments: argparse.Namespace) -> int:
    from tats_fast.engine.distributed import pick_device
    from tats_fast.recognition.probe import run_probe

    overrides = model_overrides(arguments.overrides)
    device = pick_device(chosen(Device, arguments).device)
    return run_probe(chosen(ProbeOptions, arguments), device, overrides)


def _extract(arguments: argparse.Namespace) -> int:
    from tats_fast.data.lists import read_videos
    from tats_fast.engine.distributed import pick_device
    from tats_fast.interchange import build_encoder, read_weights
    from tats_fast.recognition.extract import extract_features

    overrides = model_overrides(arguments.overrides)
    device = pick_device(chosen(Device, arguments).device)
    options = chosen(ExtractOptions, arguments)
    videos = read_videos(options.videos, options.root, key="videos")
    weights = read_weights(options.checkpoint, {"attention": "auto", **overrides})
    settings = chosen(ExtractSettings, options, weights)
    done = extract_features(build_encoder(weights, device), videos, settings, Path(options.out))
    before = f", {done.skipped} of them from before" if done.skipped else ""
    print(f"{options.out}: {done.windows} windows of {done.videos} videos{before}")
    if done.bad:
        print(f"{len(done.bad)} of {len(videos)} videos could not be read; index.jsonl says why")
    return 1 if done.bad else 0


EVALUATE = Command(
    "evaluate",
    "accuracy of a fine-tuned classifier over several views of each video",
    _evaluate,
    options=(EvaluateOptions, Device),
    override=MODEL_OVERRIDE,
)
PROBE = Command(
    "probe",
    "classify videos by a model's frozen features",
    _probe,
    options=(ProbeOptions, Device),
    override=MODEL_OVERRIDE,
)
EXTRACT = Command(
    "extract-features",
    "features of every window of every video, one file per video",
    _extract,
    options=(ExtractOptions, Device),
    override=MODEL_OVERRIDE,
)
