"""Files that commands leave behind: each appears whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from tats_fast.config import ConfigError

LOGGER = logging.getLogger("tats_fast")


def shown(text: str) -> str:
    """A path or label that can be printed on one line, whatever bytes it holds: what a terminal
    would obey is written out, such as ``\\x1b``."""
    text = os.fsencode(text).decode("utf-8", "replace")
    return "".join(_written_out(mark) if _is_obeyed(mark) else mark for mark in text)


def _is_obeyed(mark: str) -> bool:
    # Control characters, separators of lines and paragraphs, and marks that turn the direction.
    return category(mark) in ("Cc", "Zl", "Zp") or mark in "\u202a\u202b\u202c\u202d\u202e"


def _written_out(mark: str) -> str:
    return f"\\x{ord(mark):02x}" if ord(mark) < 256 else f"\\u{ord(mark):04x}"


def printable(message: str) -> str:
    """A message of one or several lines with whatever names in it, as ``shown`` shows them."""
    return "\n".join(map(shown, message.split("\n")))


class PrintableFormatter(logging.Formatter):
    """Log lines that can be printed, whatever names of files are in them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures to write ``path`` become a ``ConfigError`` of one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def require_writable(folder: Path, key: str) -> None:
    """See, before any work, that ``folder`` can be made and written into; makes nothing.

    Args:
        key: what the message calls it.

    Raises:
        ConfigError: something else has its name, or permission is missing; one line.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"{key}={folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: no permission to write into {there}")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which is ``out`` once the block has ended, and gone if it fails. An
    empty ``out`` is filled and not replaced: someone may stand in it, or a disk be mounted there.

    Raises:
        ConfigError: ``out`` is there and not an empty folder, or cannot be written; one line.
    """
    there, unfinished = out.exists(), f".writing_{out.absolute().name}"
    if there and (not out.is_dir() or any(path.name != unfinished for path in out.iterdir())):
        raise ConfigError(f"out={out}: exists and is not an empty folder")
    temporary = (out if there else out.parent) / unfinished
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(out):
            temporary.mkdir(parents=True)
        yield temporary
        with writing(out):
            if not there:
                temporary.rename(out)
                return
            # Lists, which name the others, come last.
            for path in sorted(temporary.iterdir(), key=lambda path: path.suffix):
                path.rename(out / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class LineFile:
    """A text file that grows line by line while training goes on.

    A disk that is full, or away, costs no step: one warning says so, and the lines wait for the
    next that can be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def append(self, lines: Iterable[str]) -> None:
        """Write these, without line ends, behind those that wait."""
        known, size = bool(self._waiting), None
        self._waiting += lines
        text = "".join(f"{line}\n" for line in self._waiting)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                size = file.tell()
                file.write(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            if size is not None:  # a part may have found room, and would be there twice
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
            if not known:
                reason = error.strerror or error
                LOGGER.warning("%s cannot be written (%s): its lines wait", self.path, reason)
        else:
            self._waiting.clear()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` at once: a reader sees the old file or the whole new one.

    Raises:
        ConfigError: that is not possible; one line.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text; names that are not UTF-8 keep their bytes."""
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows of numbers, printable texts and None, which leaves its cell empty."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_bytes(path, buffer.getvalue().encode())
