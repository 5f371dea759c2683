"""``tats-fast extract-features``."""

from __future__ import annotations

import argparse
import os

from tats_fast.commands.running import add_model_overrides, model_overrides


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    extract = commands.add_parser(
        "extract-features", help="features of every window of every video, one file per video"
    )
    extract.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="run, checkpoint folder or file"
    )
    extract.add_argument("--videos", metavar="FOLDER_OR_LIST", required=True)
    extract.add_argument("--root", metavar="DIR", help="where the list's paths start")
    extract.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    extract.add_argument(
        "--format", default="npy", choices=("npy", "safetensors"), help="of the files"
    )
    extract.add_argument(
        "--what", default="mean", choices=("mean", "tokens"), help="mean over tokens, or all tokens"
    )
    extract.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="frames from one of a window to the next; 0 = one window, a frame of each segment of "
        "the video (default: as the encoder was trained, or 4)",
    )
    extract.add_argument(
        "--hop",
        type=int,
        metavar="N",
        help="frames from one window to the next (default: num_frames * stride, no overlap)",
    )
    extract.add_argument(
        "--batch-size", type=int, metavar="N", default=16, help="windows at once (default: 16)"
    )
    extract.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes (default: one per core)"
    )
    extract.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds without a further window after which a video is given up (default: 60)",
    )
    extract.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add_model_overrides(extract)
    extract.set_defaults(run=_extract)


def _extract(options: argparse.Namespace) -> int:
    from dataclasses import replace
    from pathlib import Path

    from tats_fast.data.lists import read_videos
    from tats_fast.engine.distributed import pick_device
    from tats_fast.interchange import build_encoder, read_weights
    from tats_fast.recognition.extract import ExtractSettings, extract_features

    overrides = model_overrides(options.overrides)
    device = pick_device(options.device)
    names = ("what", "format", "hop", "batch_size", "timeout")
    settings = ExtractSettings(
        stride=4 if options.stride is None else options.stride,
        workers=len(os.sched_getaffinity(0)) if options.workers is None else options.workers,
        **{name: getattr(options, name) for name in names},
    )
    videos = read_videos(options.videos, options.root, key="--videos")
    path = Path(options.checkpoint).expanduser()
    weights = read_weights(path, {"attention": "auto", **overrides})
    if options.stride is None and weights.stride is not None:
        settings = replace(settings, stride=weights.stride)
    out = Path(options.out).expanduser()
    done = extract_features(build_encoder(weights, device), videos, settings, out)
    before = f", {done.skipped} of them from before" if done.skipped else ""
    print(f"{out}: {done.windows} windows of {done.videos} videos{before}")
    if done.bad:
        print(f"{len(done.bad)} of {len(videos)} videos could not be read; index.jsonl says why")
    return 1 if done.bad else 0
