"""Videos inside tar files, one after the other as WebDataset lays them out, read where they lie.

A video has the path ``shard.tar/name-of-the-member``, wherever a video's path may stand. Nothing is
unpacked: a member is a stretch of the shard, and whoever opens it sees that stretch alone.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tats_fast.config import ConfigError
from tats_fast.data.limits import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SHARD_SUFFIX = ".tar"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Bytes of a label's file at most; what is longer is none.
_LABEL_BYTES = 1 << 20


class Stretch(NamedTuple):
    """Bytes ``start`` to ``start + size`` of the file ``shard``."""

    shard: str
    start: int
    size: int


class Member(io.RawIOBase):
    """A stretch of a file, as a file of its own.

    Attributes:
        name: what a library takes for the file's name.
    """

    def __init__(self, stretch: Stretch, name: str) -> None:
        self.name = name
        self._stretch, self._at = stretch, 0
        self._file = open(stretch.shard, "rb", buffering=0)  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stretch.size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        left = max(0, self._stretch.size - self._at)
        data = os.pread(self._file.fileno(), min(left, len(buffer)), self._stretch.start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def is_shard(path: str) -> bool:
    """Whether a path names a shard, by its ending."""
    return path.lower().endswith(SHARD_SUFFIX)


def shard_paths(spec: str, key: str) -> list[str]:
    """The shards that ``spec`` names: ``"{08..11}.tar"`` -> 08.tar, 09.tar, 10.tar, 11.tar.

    Numbers are as wide as the first one of their braces; several braces give all combinations.

    Raises:
        ConfigError: one of them does not exist, or a range runs backwards; one line.
    """
    parts = _BRACES.split(spec)
    texts, ranges = parts[::3], list(zip(parts[1::3], parts[2::3], strict=True))
    for first, last in ranges:
        if int(first) > int(last):
            raise ConfigError(f"{key}={spec}: {{{first}..{last}}} runs backwards")
    spans = (
        [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        for first, last in ranges
    )
    paths = [
        "".join(itertools.chain(*itertools.zip_longest(texts, numbers, fillvalue="")))
        for numbers in itertools.product(*spans)
    ]
    gone = [path for path in paths if not os.path.isfile(path)]
    if gone:
        raise ConfigError(
            f"{key}={spec}: no such file: {gone[0]}" + f" and {len(gone) - 1} more" * bool(gone[1:])
        )
    return paths


def shard_samples(shard: str, key: str) -> Iterator[tuple[str, int | str | None]]:
    """(path, label) of each video of a shard, in its order; of images where a sample has no video.

    Members whose names agree up to the first dot of their last part are one sample. Its label is
    what its ``.cls`` holds, or else ``label`` of its ``.json``: a whole number or text.

    Raises:
        ConfigError: no uncompressed tar file, or none with a video; or a label cannot be read.
    """
    try:
        members = _members(os.path.abspath(shard))
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(
            f"{key}={shard}: {_why(shard, error)}; give an uncompressed tar file"
        ) from None
    samples: dict[str, dict[str, str]] = {}
    for name in members:
        head, _, last = name.rpartition("/")
        if last.startswith("."):  # macOS leaves "._clip.mp4" beside every clip.mp4
            continue
        stem, _, ending = last.partition(".")
        samples.setdefault(f"{head}/{stem}", {})[ending.lower()] = name
    found = False
    for parts in samples.values():
        names = [name for name in parts.values() if name.lower().endswith(VIDEO_SUFFIXES)]
        names = names or [n for n in parts.values() if n.lower().endswith(IMAGE_SUFFIXES)]
        label = _label(shard, parts, members, key) if names else None
        for name in names:
            found = True
            yield os.path.join(shard, name), label
    if not found:
        raise ConfigError(f"{key}={shard}: holds no video; members are <name>.mp4, <name>.cls, ...")


def stretch_of(path: str) -> Stretch | None:
    """Where the bytes of a member's path lie; None where the path leads into no shard.

    Raises:
        FileNotFoundError: the shard has no such member.
        OSError, tarfile.TarError: the shard cannot be read.
    """
    path = os.path.abspath(path)
    for end in re.finditer(re.escape(SHARD_SUFFIX + "/"), path, re.IGNORECASE):
        shard, name = path[: end.end() - 1], path[end.end() :]
        if os.path.isfile(shard):
            stretch = _members(shard).get(name)
            if stretch is None:
                raise FileNotFoundError(f"{shard} has no member {name}")
            return stretch
    return None


def in_shard(path: str) -> bool:
    """Whether ``path`` is a member of a shard that can be read."""
    try:
        return stretch_of(path) is not None
    except (OSError, tarfile.TarError):
        return False


@cache
def _members(shard: str) -> dict[str, Stretch]:
    """The files in a shard, by name. Reads its headers alone, once per process; what is forked
    later has them, too."""
    with tarfile.open(shard, "r:") as tar:
        return {
            # "./a.mp4" and "/a.mp4" are "a.mp4", and nothing leads out of the shard.
            os.path.normpath(f"/{member.name}").lstrip("/"): Stretch(
                shard, member.offset_data, member.size
            )
            for member in tar
            if member.isreg() and not member.issparse()
        }


def _label(
    shard: str, parts: dict[str, str], members: dict[str, Stretch], key: str
) -> int | str | None:
    ending = "cls" if "cls" in parts else "json"
    name = parts.get(ending)
    if name is None or members[name].size > _LABEL_BYTES:
        return None
    with Member(members[name], name) as file:
        data = file.read()
    try:
        value = data.decode() if ending == "cls" else json.loads(data)
    except ValueError:
        kind = {"cls": "text", "json": "JSON"}[ending]
        raise ConfigError(f"{key}={shard}: its member {name} is not {kind}") from None
    if ending == "json":
        value = value.get("label") if isinstance(value, dict) else None
    if isinstance(value, str):
        value = value.strip() or None
        return int(value) if value and re.fullmatch(r"[+-]?[0-9]+", value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _why(shard: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with open(shard, "rb") as file:
        head = file.read(4)
    packed = head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
    return "is compressed, and its members cannot be reached" if packed else "is no tar file"
