"""What differs between the releases of PyAV that can be used, 14.1 to 19, and where it errs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tats_fast.config import ConfigError

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


@cache
def open_options() -> dict[str, Any]:
    """Options of ``av.open`` that let it read metadata in any encoding; HMDB51 has some.

    From release 19 on that is how it reads them anyway, and the option is an error.
    """
    return {} if _release() >= 19 else {"metadata_errors": "ignore"}


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
