"""Opening a video file within the limits of ``limits.py``; every failure becomes one error."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from tarfile import TarError
from typing import TYPE_CHECKING

from tats_fast.config import Failure
from tats_fast.data.limits import is_image, stream_limits
from tats_fast.data.pyav import open_options
from tats_fast.data.shards import Member, Stretch, stretch_of

if TYPE_CHECKING:
    import av

BadFiles = list[tuple[str, str]]
"""(path, reason) of each file that could not be read."""


class DecodeError(Failure):
    """A video that gives no clip: its ``path`` and one short ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Deadline:
    """The end of the time that one file may take."""

    def __init__(self, path: str, timeout: float | None) -> None:
        self.path = path
        self.timeout = timeout
        self._began = time.monotonic()

    def check(self) -> None:
        """Raises ``DecodeError`` once the time is over."""
        if self.timeout is not None and time.monotonic() - self._began > self.timeout:
            raise DecodeError(self.path, f"took longer than {self.timeout:g} s")


@contextmanager
def open_video(
    path: str, data: bytes | None = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open the video stream of a file, of a shard's member or of an image; every failure inside the
    block becomes a ``DecodeError``.

    data: the content to read in place of the file's.
    """
    import av

    source = _source(path) if data is None else io.BytesIO(data)
    try:
        container = av.open(source, **open_options(is_image(path)))
    except FileNotFoundError as error:  # deleted since we looked
        raise DecodeError(path, "missing") from error
    except Exception as error:
        # FFmpeg calls a container that is not on our list an invalid argument.
        unknown = isinstance(error, av.error.InvalidDataError)
        unknown |= getattr(error, "errno", None) == errno.EINVAL
        kind = "an image" if is_image(path) else "a video container"
        reason = f"not {kind}" if unknown else f"cannot be opened: {_reason(error)}"
        raise DecodeError(path, reason) from error
    with container, nullcontext() if isinstance(source, str) else source:
        stream = _video_stream(container)
        if stream is None:
            raise DecodeError(path, "no video stream")
        if stream.codec_context is None:
            raise DecodeError(path, "unsupported codec")
        stream.codec_context.options = stream_limits()
        # The loader's workers are the parallelism; threads of their own would only compete.
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        try:
            yield container, stream
        except DecodeError:
            raise
        except Exception as error:  # no file may end a run, whatever it makes a library do
            raise DecodeError(path, f"decoding error: {_reason(error)}") from error


def _source(path: str) -> str | Member:
    """What FFmpeg is to read: a file by its name, or a part of one.

    Raises:
        DecodeError: there is nothing to read.
    """
    # An absolute name keeps FFmpeg from reading "a:b.mp4" as a protocol; a pipe would block.
    name = os.path.abspath(path)
    try:
        stretch = stretch_of(name)
        if stretch is None:
            _require_file(path, name)
            if not is_image(path):
                return name
            stretch = Stretch(name, 0, os.path.getsize(name))
        if stretch.size == 0:
            raise DecodeError(path, "empty file")
        # An image's name would make FFmpeg go by the name.
        return Member(stretch, "" if is_image(path) else os.path.basename(path))
    except FileNotFoundError as error:
        raise DecodeError(path, "missing") from error
    except (OSError, TarError) as error:
        raise DecodeError(path, f"cannot be opened: {_reason(error)}") from error


def _require_file(path: str, name: str) -> None:
    """Raises ``DecodeError`` where there is nothing to read at ``name``."""
    if not os.path.exists(name):
        raise DecodeError(path, "missing")
    if not os.path.isfile(name):
        raise DecodeError(path, "not a regular file")
    if os.path.getsize(name) == 0:
        raise DecodeError(path, "empty file")


def _reason(error: Exception) -> str:
    """FFmpeg's or the system's words; of other errors the kind, too."""
    if isinstance(error, OSError | ValueError) and str(error):
        return getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """FFmpeg's choice of video stream, or another if that is the cover picture of a song."""
    from av.stream import Disposition

    def is_cover(stream: av.VideoStream) -> bool:
        return bool(stream.disposition & Disposition.attached_pic)

    best = container.streams.best("video")
    if best is not None and not is_cover(best):
        return best
    return next((stream for stream in container.streams.video if not is_cover(stream)), None)
