"""What one video file is, as a line of the manifest, and which files are in quarantine."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.data.bad_files import read_bad_files
from tats_fast.data.opening import DecodeError, open_video
from tats_fast.data.video import Timing

_HASH_BLOCK = 1 << 20


def describe(path: str, with_hash: bool = False) -> dict[str, Any]:
    """Facts of a video without decoding it, for one line of the manifest.

    Returns:
        ``frames`` (as the container claims or implies), ``fps``, ``width`` and ``height`` in stored
        pixels, ``codec``, ``duration`` in s, ``bytes``, and ``sha256`` of the file if asked for.

    Raises:
        DecodeError: the file holds no video.
    """
    with open_video(path) as (_, stream):
        timing = Timing.of(path, stream)
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


def sha256(path: str) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def listed_path(path: str, out: str) -> str:
    """How a list in the folder ``out`` names the absolute ``path``.

    Relative where the file lies below ``out``, so that the folder can be moved as a whole.
    """
    below = os.path.join(out, "")
    return path[len(below) :] if path.startswith(below) else path


def read_quarantine(path: str, videos: str) -> dict[str, str]:
    """Reason by absolute path of the files named in lines of ``path<TAB>reason``.

    A relative path starts from the folder of videos, the list's own or the current one; all are
    returned.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        bad = read_bad_files(path)
    except OSError as error:
        raise ConfigError(f"quarantine={path}: {error.strerror}") from error
    bases = (videos, os.path.dirname(os.path.abspath(path)), os.getcwd())
    return {
        os.path.abspath(os.path.join(base, name)): reason
        for name, reason in bad.items()
        for base in bases
    }
