"""What differs between the releases of PyAV that can be used, 14.1 to 19, and where it errs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tats_fast.config import ConfigError
from tats_fast.data.limits import container_limits, stream_limits

if TYPE_CHECKING:
    import av


def require_pyav() -> None:
    """See at the start that videos can be read at all: DALI, too, has its windows from PyAV.

    Raises:
        ConfigError: PyAV is not installed.
    """
    if find_spec("av") is None:
        raise ConfigError("videos are read with PyAV, which is not installed; pip install av")


def packets_of(
    container: av.container.InputContainer, *streams: av.VideoStream
) -> Iterator[av.Packet]:
    """``container.demux(*streams)``, also of files in which a stream begins on the way.

    Such a stream is not in the list that PyAV made when it opened the file, and ends its walk over
    that list with an IndexError, once all packets are out and the known streams are flushed.
    """
    try:
        yield from container.demux(*streams)
    except IndexError:
        return


def copies_packets() -> bool:
    """Whether packets can be written to another file as they are: release 14 opens an encoder of
    their codec instead, and writes what that says."""
    return _release() >= 15


def codec_name(context: av.CodecContext) -> str:
    """FFmpeg's name of a codec, whichever decoder reads it: ``av1`` of libdav1d's."""
    # Before release 15 there are the names of decoders only.
    name = getattr(context.codec, "canonical_name", context.codec.name)
    return {"libdav1d": "av1", "libaom-av1": "av1"}.get(name, name)


@cache
def open_options(image: bool = False) -> dict[str, Any]:
    """Options of ``av.open`` that let it read metadata in any encoding (HMDB51 has some), and keep
    it within the limits of ``limits.py``.

    From release 19 on that is how it reads metadata anyway, and the option is an error. Before 18
    options of decoders may crash it where a stream shows after the header only (MPEG, FLV): then it
    looks at a first picture of any size, and the limit holds from the first one decoded on.
    """
    metadata = {} if _release() >= 19 else {"metadata_errors": "ignore"}
    if _release() < 18:
        return metadata | {"container_options": container_limits(image)}
    return metadata | {"options": container_limits(image) | stream_limits()}


@cache
def scaling_options() -> dict[str, Any]:
    """Options of ``reformat`` that keep it on one thread: worker processes are the parallelism.

    Before release 17 there was neither the option nor a second thread.
    """
    return {"threads": 1} if _release() >= 17 else {}


def forget_scalers() -> None:
    """Let go of what a forked process must not inherit.

    From release 19 on PyAV keeps a scaler for each thread that scaled a frame. A forked process
    frees those of all other threads before it does anything, and waits for ever for their helper
    threads, which it does not have.
    """
    frames = sys.modules.get("av.video.frame")
    if hasattr(frames, "_thread_local"):
        frames._thread_local = threading.local()


def _release() -> int:
    import av

    return int(av.__version__.partition(".")[0])
