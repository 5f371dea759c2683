"""What one video file is, and the files that ``prepare`` writes about all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.data import DecodeError
from tats_fast.data.video import Timing, open_video

_HASH_BLOCK = 1 << 20


def describe(path: str, with_hash: bool = False) -> dict[str, Any]:
    """Facts of a video without decoding it, for one line of the manifest.

    frames (what the container claims or implies), fps, width and height in
    stored pixels, codec, duration in s, bytes, and sha256 of the file if asked for. Raises
    ``DecodeError`` if the file holds no video.
    """
    with open_video(path) as (container, stream):
        timing = Timing.of(path, container, stream)
        context = stream.codec_context
        facts = {
            "frames": timing.frames,
            "fps": round(timing.rate, 4),
            "width": context.width,
            "height": context.height,
            "codec": context.name,
            "duration": round(timing.frames / timing.rate, 4),
            "bytes": os.path.getsize(path),
        }
    if timing.frames < 1 or context.width < 1 or context.height < 1:
        raise DecodeError(path, "no frame in the video stream")
    if with_hash:
        facts["sha256"] = sha256(path)
    return facts


def describe_job(path: str, with_hash: bool) -> dict[str, Any]:
    """``describe``, with a broken file as an outcome: ``{"error": reason}``."""
    try:
        return describe(path, with_hash)
    except DecodeError as error:
        return {"error": error.reason}


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file at once: a reader sees the old file or the whole new one.

    Names that are not UTF-8 keep their bytes. Raises ``ConfigError`` if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def manifest_line(entry: Mapping[str, Any]) -> str:
    """One line of JSON; ASCII escapes also carry names that are not UTF-8."""
    return json.dumps(entry)


def listed_path(path: str, out: str) -> str:
    """How a list in the folder ``out`` names the absolute ``path``.

    Relative where the file lies below ``out``, so that the folder can be moved as a whole.
    """
    below = os.path.join(out, "")
    return path[len(below) :] if path.startswith(below) else path


def one_field(text: str) -> str:
    """The text without the tabs and line ends that would break a line of ``path<TAB>reason``."""
    return " ".join(text.splitlines()).replace("\t", " ")


def read_quarantine(path: str, videos: str) -> dict[str, str]:
    """Reason by absolute path of the files named in lines of ``path<TAB>reason``.

    A relative path starts from the folder of videos or from the list's own; both are returned.
    Raises ``ConfigError`` if the file cannot be read.
    """
    reasons = {}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                name, _, reason = line.rstrip("\r\n").partition("\t")
                if name and not name.startswith("# "):
                    for base in (videos, os.path.dirname(os.path.abspath(path))):
                        reasons[os.path.abspath(os.path.join(base, name))] = reason
    except OSError as error:
        raise ConfigError(f"--quarantine={path}: {error.strerror}") from error
    return reasons
