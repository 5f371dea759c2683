"""What differs between the releases of PyAV that can be used, 14.1 to 19."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

from tats_fast.config import ConfigError


def require_pyav() -> None:
    """See at the start that videos can be read at all: DALI, too, has its windows from PyAV.

    Raises:
        ConfigError: PyAV is not installed.
    """
    if find_spec("av") is None:
        raise ConfigError("videos are read with PyAV, which is not installed; pip install av")


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


def _release() -> int:
    import av

    return int(av.__version__.partition(".")[0])
