"""The file with the features of one video, written window by window: ``docs/features.md``."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tats_fast.data.files import writing

# Bytes in front of the arrays of a file. They hold the number of windows, which is known last.
_HEADER_BYTES = 256


@dataclass(frozen=True)
class Layout:
    """Bytes of a feature file: a header of fixed size, the features and, in safetensors, starts."""

    format: str
    """``npy`` or ``safetensors``."""
    shape: tuple[int, ...]
    """Of one window's features."""
    dtype: str
    """Of the features, as NumPy spells it, with the byte order: ``<f4``."""

    def header(self, windows: int) -> bytes:
        """What comes before the features, according to the two formats' specifications."""
        if self.format == "npy":
            shape = (windows, *self.shape)
            text = repr({"descr": self.dtype, "fortran_order": False, "shape": shape})
            room = _HEADER_BYTES - 10
            head = b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little")
            return head + text.encode().ljust(room - 1) + b"\n"
        end = windows * self._window_bytes
        kind = f"F{8 * np.dtype(self.dtype).itemsize}"
        shape, starts_end = [windows, *self.shape], end + 8 * windows
        description = {
            "features": {"dtype": kind, "shape": shape, "data_offsets": [0, end]},
            "starts": {"dtype": "I64", "shape": [windows], "data_offsets": [end, starts_end]},
        }
        room = _HEADER_BYTES - 8
        return room.to_bytes(8, "little") + json.dumps(description).encode().ljust(room)

    def file_bytes(self, windows: int) -> int:
        """Size of a complete file."""
        starts = 8 * windows if self.format == "safetensors" else 0
        return _HEADER_BYTES + windows * self._window_bytes + starts

    @property
    def _window_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class FeatureFile:
    """A file that grows window by window beside its place, and appears there once it is whole."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.starts: list[int] = []
        self._layout = layout
        self._temporary = path.with_name(f".{path.name}.tmp")
        with writing(path):
            self._file = open(self._temporary, "wb")  # noqa: SIM115
            self._file.write(bytes(_HEADER_BYTES))

    def append(self, start: int, features: np.ndarray) -> None:
        """Add a window that begins at frame ``start``."""
        assert features.shape == self._layout.shape
        self.starts.append(start)
        with writing(self.path):
            self._file.write(features.astype(self._layout.dtype, copy=False).tobytes())

    def finish(self) -> dict[str, Any]:
        """Let the file appear; returns what the index says about it."""
        with writing(self.path):
            if self._layout.format == "safetensors":
                self._file.write(np.array(self.starts, "<i8").tobytes())
            self._file.seek(0)
            header = self._layout.header(len(self.starts))
            assert len(header) == _HEADER_BYTES
            self._file.write(header)
            self._file.close()
            os.replace(self._temporary, self.path)
        return {"file": self.path.name, "windows": len(self.starts), "starts": self.starts}

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # a full disk, which is said elsewhere
            self._file.close()
        self._temporary.unlink(missing_ok=True)
