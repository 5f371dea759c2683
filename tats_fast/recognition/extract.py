"""Features of every window of every listed video, one file per video: ``docs/features.md``.

Windows are encoded as they are decoded and written as they are encoded, so memory does not grow
with the length of a video. A video is complete once ``index.jsonl`` has its line, which is written
after its file.

Legend: W windows of a video, N tokens, C width.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tats_fast.config import ConfigError
from tats_fast.data.files import shown, write_json, write_lines, writing
from tats_fast.data.lists import Video
from tats_fast.data.opening import BadFiles, DecodeError
from tats_fast.data.windows import Length, Window, timed_windows, video_windows, window_batches
from tats_fast.data.workers.pool import Done, stream_parts
from tats_fast.data.workers.progress import JobProgress
from tats_fast.data.workers.record import Stamp, lock, read_lines, stamp, stamps
from tats_fast.models.encoder import VideoEncoder
from tats_fast.recognition.feature_file import FeatureFile, Layout
from tats_fast.recognition.features import encode, encoder_hash
from tats_fast.recognition.options import ExtractSettings

LOGGER = logging.getLogger("tats_fast")
INDEX, SETTINGS, LOCK = "index.jsonl", "settings.json", ".lock"

# Part of the settings: raise it when the same ones come to mean other features.
_VERSION = 1
# Characters kept of a file's own name: file systems take 255 bytes, and a character is up to 4.
_STEM = 48


@dataclass(frozen=True)
class Extraction:
    """What a call of ``extract_features`` left behind."""

    videos: int
    """Listed videos whose features are in the folder."""
    skipped: int
    """Those of them that were there before."""
    windows: int
    """Windows of all of them."""
    bad: BadFiles


def extract_features(
    encoder: VideoEncoder, videos: Sequence[Video], settings: ExtractSettings, out: Path
) -> Extraction:
    """Write the features of all windows of ``videos`` into the folder ``out``.

    Runs on the encoder's device, on a GPU in bf16. What is complete in ``out`` is left as it is,
    unless its video file has changed; what could not be read is tried again. An interruption costs
    the videos in work.

    Raises:
        ConfigError: ``out`` holds features of another encoder, of other settings or of another
            list, is in use, or cannot be written; or the features are not finite. One line.
    """
    config = encoder.config
    # In sampled frames where these are taken by time.
    step = 1 if settings.fps is not None else settings.stride
    hop = (settings.hop or config.num_frames * step) if step else 0
    tokens = (config.num_tokens,) if settings.what == "tokens" else ()
    layout = Layout(settings.format, (*tokens, config.width), "<f2" if tokens else "<f4")
    with _locked(out):
        _require_same_settings(out, encoder, settings, hop)
        lines = _complete(out, videos, layout)
        _write_index(out, lines)
        skipped = sum(number < len(videos) for number in lines)
        todo = {n: video for n, video in enumerate(videos) if n not in lines}
        if todo:
            written = _written(encoder, todo, settings, hop, layout, out)
            with (
                contextlib.closing(written),
                open(out / INDEX, "a") as index,
                JobProgress("videos", len(videos), skipped, sparse=True) as progress,
            ):
                failed = 0
                for line in written:
                    lines[line["number"]] = line
                    with writing(out / INDEX):
                        index.write(json.dumps(line) + "\n")
                        index.flush()
                    if "error" in line:
                        LOGGER.warning("could not read %s: %s", shown(line["path"]), line["error"])
                    failed += "error" in line
                    progress.at(len(lines), failed)
            _write_index(out, lines)
    listed = [lines[number] for number in range(len(videos))]
    bad = [(line["path"], line["error"]) for line in listed if "error" in line]
    windows = sum(line.get("windows", 0) for line in listed)
    return Extraction(len(listed) - len(bad), skipped, windows, bad)


def _written(
    encoder: VideoEncoder,
    videos: dict[int, Video],
    settings: ExtractSettings,
    hop: int,
    layout: Layout,
    out: Path,
) -> Iterator[dict[str, Any]]:
    """The index line of each video, by number, that came to its end, after its file was written."""
    config = encoder.config

    def windows(number: int) -> Generator[Window, None, tuple[Stamp, Length] | str]:
        path = videos[number].path
        before = stamp(path)
        try:
            if settings.fps is not None:
                read = timed_windows(path, config.num_frames, settings.fps, hop, config.image_size)
            else:
                read = video_windows(
                    path, config.num_frames, settings.stride, hop, config.image_size
                )
            return before, (yield from read)
        except DecodeError as error:
            return error.reason
        except MemoryError:
            return "not enough memory"

    files: dict[int, FeatureFile] = {}
    events = stream_parts(windows, videos, min(settings.workers, len(videos)), settings.timeout)
    try:
        for batch in window_batches(events, settings.batch_size):
            clips = [event.clip for _, event in batch if isinstance(event, Window)]
            features = iter(_encoded(encoder, clips, settings.what))
            for number, event in batch:
                video = videos[number]
                if isinstance(event, Window):
                    if number not in files:
                        path = out / _file_name(number, video, layout)
                        files[number] = FeatureFile(path, layout)
                    files[number].append(event.start, next(features))
                    continue
                line = {"number": number, "path": video.path, "label": video.label}
                outcome = event.result if isinstance(event, Done) else event.reason
                if isinstance(outcome, str):
                    if number in files:
                        files.pop(number).discard()
                    yield {**line, "error": outcome}
                else:
                    before, length = outcome
                    line |= files.pop(number).finish()
                    yield {**line, **asdict(length), "stamp": before}
    finally:
        events.close()
        for file in files.values():
            file.discard()


def _encoded(encoder: VideoEncoder, clips: list[np.ndarray], what: str) -> np.ndarray:
    """What is stored of each clip: (B, C) fp32 or (B, N, C) fp16."""
    if not clips:
        return np.empty(0)
    features = encode(encoder, np.stack(clips))
    stored = features.half() if what == "tokens" else features.mean(1)
    if not torch.isfinite(stored).all():
        limit = " in fp16" if what == "tokens" else ""
        raise ConfigError(f"checkpoint: the encoder's features are not finite{limit}")
    return stored.cpu().numpy()


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The folder, made if needed, for this process alone and without what a killed one left."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / LOCK, "w")  # noqa: SIM115
    with file:
        lock(file, f"out={out}")
        for left in out.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield


def _require_same_settings(
    out: Path, encoder: VideoEncoder, settings: ExtractSettings, hop: int
) -> None:
    """Write down what the features depend on, or compare with what is written there."""
    wanted = {
        "version": _VERSION,
        "encoder": encoder_hash(encoder),
        "num_frames": encoder.config.num_frames,
        "device": next(encoder.parameters()).device.type,  # the GPU computes in bf16
        **{name: getattr(settings, name) for name in ("what", "format", "stride", "fps")},
        "hop": hop,
    }
    path = out / SETTINGS
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        stored = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        stored = {}
    other = [f"{key} {stored.get(key)}" for key in wanted if stored.get(key) != wanted[key]]
    if other:
        raise ConfigError(
            f"out={out}: holds features of other settings ({', '.join(other)}); give the same "
            "ones or choose another folder"
        )


def _complete(out: Path, videos: Sequence[Video], layout: Layout) -> dict[int, dict[str, Any]]:
    """Index lines, by number, of what need not be done again; with the labels of the list.

    Raises ``ConfigError`` if the index is of another list. A longer or shorter one is welcome.
    """
    try:
        with open(out / INDEX, "rb") as index:
            lines = {line["number"]: line for line in read_lines(index)}
    except FileNotFoundError:
        return {}
    for number, line in lines.items():
        if number < len(videos):
            if line["path"] != videos[number].path:
                raise ConfigError(
                    f"out={out}: number {number} is {shown(line['path'])} there and "
                    f"{shown(videos[number].path)} in this list; give the same list, which may "
                    "have grown at its end, or choose another folder"
                )
            line["label"] = videos[number].label

    done = [line for line in lines.values() if "error" not in line]
    files = stamps(str(out / line["file"]) for line in done)
    videos_now = stamps(line["path"] for line in done)
    return {
        line["number"]: line
        for line, file, video in zip(done, files, videos_now, strict=True)
        # A video that is gone since needs no second reading; one that changed does.
        if file and file[0] == layout.file_bytes(line["windows"]) and video in (None, line["stamp"])
    }


def _write_index(out: Path, lines: dict[int, dict[str, Any]]) -> None:
    write_lines(out / INDEX, (json.dumps(lines[number]) for number in sorted(lines)))


def _file_name(number: int, video: Video, layout: Layout) -> str:
    """Running number and what is harmless of the video's own name: ``000012_my_clip.npy``."""
    stem = os.path.splitext(os.path.basename(video.path))[0]
    harmless = re.sub(r"[^\w.-]+", "_", stem)[:_STEM]
    return f"{number:06d}_{harmless}.{layout.format}"
