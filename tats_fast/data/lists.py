"""Which videos a run reads: list files as they occur in the wild, a folder, or shards.

A list holds ``path[<separator>label]`` per line. The separator is decided once per file: tab,
comma or ``::`` where it splits every line that is more than a path, else white space. Labels are
optional, and a first line that names the columns is no video.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tats_fast.config import ConfigError
from tats_fast.data.limits import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tats_fast.data.shards import SHARD_SUFFIX, in_shard, is_shard, shard_paths, shard_samples

SEPARATORS = ("\t", ",", "::")
HEADER_NAMES = {
    *("path", "paths", "file", "filename", "file_name", "file_path", "filepath"),
    *("name", "clip", "video", "video_id", "video_name", "video_path"),
}
PROBED_PATHS = 16
_LISTED = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, SHARD_SUFFIX)

Label = int | str | None
Row = tuple[str, Label]


@dataclass(frozen=True)
class Video:
    """One listed video: ``path`` ready to open, ``label`` as written (int where it is one), and
    which of several lists names it."""

    path: str
    label: Label = None
    part: int = 0


def read_videos(
    spec: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    key: str = "data.train",
) -> list[Video]:
    """Read a list of videos.

    Args:
        spec: a list file; or a folder that is searched recursively (sorted by path, no labels; if
            it holds no video, for shards); or shards, such as ``"shards/{000..123}.tar"``. A shard
            that a list names stands for its videos, an image for a clip that stands still.
        root: folder that a list's relative paths start from; none = the list file's own folder.
        key: what messages call ``spec``.

    Raises:
        ConfigError: a missing, empty or binary list, a folder without videos, a missing root, or a
            list of which none of the first paths exists, or a shard that cannot be read; one line.
    """
    spec = os.path.expanduser(os.fspath(spec))
    if root is not None:
        root = os.path.expanduser(os.fspath(root))
        if not os.path.isdir(root):
            key = _root_key(key)
            raise ConfigError(f"{key}={root}: no such folder; give the folder of the videos")
    if os.path.isdir(spec):
        videos = [Video(os.path.join(spec, path)) for path in scan_videos(spec, key)[0]]
        if not videos:
            shards = scan_videos(spec, key, suffixes=(SHARD_SUFFIX,))[0]
            videos = _unfolded([Video(os.path.join(spec, path)) for path in shards], key)
        if not videos:
            raise ConfigError(
                f"{key}={spec}: no video in this folder or below; "
                f"known endings are {' '.join(VIDEO_SUFFIXES)}"
            )
        return videos
    if is_shard(spec):
        return _unfolded([Video(path) for path in shard_paths(spec, key)], key)
    if not os.path.exists(spec):
        raise ConfigError(f"{key}={spec}: no such file; give a list file or a folder of videos")
    base = root if root is not None else os.path.dirname(os.path.abspath(spec))
    rows = _parse(_read_lines(spec, key), base)
    if not rows:
        raise ConfigError(f"{key}={spec}: lists no video; write one path per line")
    videos = [Video(os.path.join(base, path), label) for path, label in rows]
    _require_some_exist(videos, spec, key)
    return _unfolded(videos, key)


def _unfolded(videos: list[Video], key: str) -> list[Video]:
    """The videos of every shard in the shard's place, with the label of its line where they have
    none."""
    unfolded = []
    for video in videos:
        if not is_shard(video.path):
            unfolded.append(video)
            continue
        for path, label in shard_samples(video.path, key):
            unfolded.append(Video(path, video.label if label is None else label))
    return unfolded


def scan_videos(
    root: str, key: str, skip: str | None = None, suffixes: tuple[str, ...] = VIDEO_SUFFIXES
) -> tuple[list[str], list[str]]:
    """Videos below a folder, and folders there that cannot be read; relative to it, sorted.

    Hidden names are left out: macOS leaves "._clip.mp4" beside every copied clip.mp4. Each folder
    is read once and no file is asked for anything: 240,000 files take about a second on a local
    disk. Links to folders are followed, each real folder once.

    Args:
        root: the folder.
        key: what messages call it.
        skip: a folder below it to leave out.
        suffixes: what to look for instead of videos, in lower case.

    Raises:
        ConfigError: the folder itself cannot be read.
    """
    videos: list[str] = []
    closed: list[str] = []
    waiting, seen = [""], set()
    # The root itself is never skipped: one may read the copies of an earlier call.
    skipped = {os.path.realpath(skip)} - {os.path.realpath(root)} if skip is not None else set()
    while waiting:
        here = waiting.pop()
        folder = os.path.join(root, here)
        real = os.path.realpath(folder)
        if real in seen or real in skipped:  # a link back up the tree would never end
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = os.path.join(here, entry.name)
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(suffixes) and not entry.is_dir(
                        follow_symlinks=False
                    ):
                        videos.append(path)
                    elif entry.is_dir():
                        waiting.append(path)
        except OSError as error:
            if not here:
                raise ConfigError(
                    f"{key}={root}: {error.strerror}; give a readable folder of videos"
                ) from error
            closed.append(here)  # such as lost+found
    return sorted(videos), sorted(closed)


def _read_lines(path: str, key: str) -> list[str]:
    """The list's lines without line ends, comments and blank lines."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise ConfigError(f"{key}={path}: {error.strerror}; give a readable list file") from error
    if b"\0" in raw:
        raise ConfigError(
            f"{key}={path}: not a text file; give a list file or a folder, not a video"
        )
    # File names are bytes; surrogateescape carries those that are not UTF-8 to open() unchanged.
    text = raw.decode("utf-8-sig", errors="surrogateescape")
    # str.splitlines would also split at \x0b, \x1c or U+2028, which file names may hold.
    lines = (line.strip() for line in re.split(r"\r\n|\n|\r", text))
    return [line for line in lines if line and not _is_comment(line)]


def _is_comment(line: str) -> bool:
    """A ``#`` line that names no video; HMDB51 has clips called ``#122_Cleaning_...avi``."""
    return line.startswith("#") and not any(map(_is_video, _words(line)))


def _is_header(lines: list[str], base: str) -> bool:
    """Whether the first line is such as ``path,label``, and not ``video 3`` or an existing file's
    name. ``path,0`` is one where all others name files with known endings."""
    words = [word.strip('"') for word in _words(lines[0])]
    return (
        words[0].lower() in HEADER_NAMES
        and not any(map(_is_video, words))
        and not any(os.path.exists(os.path.join(base, name)) for name in (lines[0], words[0]))
        and (
            not any(map(is_integer, words))
            or all(any(map(_is_video, _words(line))) for line in lines[1:] or [""])
        )
    )


def _words(line: str) -> list[str]:
    """What stands between separators of any kind."""
    return re.split(r"[\s,]+|::", line)


def _is_video(name: str) -> bool:
    """Whether a word of a list names a file that can be listed."""
    return name.strip().strip('"').lower().endswith(_LISTED)


def _parse(lines: list[str], base: str) -> list[Row]:
    if lines and _is_header(lines, base):
        lines = lines[1:]
    for separator in SEPARATORS:
        rows = _parse_separated(lines, separator)
        if rows is not None:
            return rows
    return [_split_white_space(line, base) for line in lines]


def _parse_separated(lines: list[str], separator: str) -> list[Row] | None:
    """Rows of a file separated by ``separator``, or None where it is another separator's."""
    rows, splits = [], False
    for line in lines:
        fields = line.split(separator)
        # A line that ends like a video is a path alone, whatever characters it holds.
        cut = len(fields) if _is_video(line) else _path_fields(fields)
        path = separator.join(fields[:cut]).strip()
        if len(path) > 1 and path[0] == path[-1] == '"':
            path = path[1:-1]
        # In "Smith, John/1.mp4 0" and "a.mp4 run, fast" the comma is part of a name; no tab is.
        in_name = separator != "\t" and not _is_video(path) and any(map(_is_video, _words(line)))
        if cut == 0 or in_name:
            return None
        splits |= cut < len(fields)
        rows.append((path, _label(fields[cut:], separator) if fields[cut:] else None))
    return rows if splits else None


def _split_white_space(line: str, base: str) -> Row:
    """Split ``path [label]`` at white space although the path itself may hold some.

    ``my clip.mp4 3`` -> ("my clip.mp4", 3);  ``my clip.mp4`` -> ("my clip.mp4", None)
    """
    words = list(re.finditer(r"\S+", line))
    if len(words) == 1 or _is_video(line):
        return line, None
    cut = _path_fields([word.group() for word in words])
    # Without a known ending only an integer is a label, and an existing file wins over it.
    if not _is_video(words[cut - 1].group()) and (
        not is_integer(words[-1].group()) or os.path.exists(os.path.join(base, line))
    ):
        return line, None
    return line[: words[cut - 1].end()], _label([word.group() for word in words[cut:]], " ")


def _path_fields(fields: list[str]) -> int:
    """How many leading fields make the path: up to the last that ends like a video, else all but
    the trailing integers (at most three: start, total, label)."""
    for count in range(len(fields), 0, -1):
        if _is_video(fields[count - 1]):
            return count
    count = len(fields) - 1
    while count > 1 and len(fields) - count < 3 and all(map(is_integer, fields[count - 1 :])):
        count -= 1
    return count


def _label(fields: list[str], separator: str) -> Label:
    """The label in the fields behind the path.

    One field is the label. Integers: ``0 -1`` is VideoMAEv2's start and total without a label,
    ``120 7`` total and label, ``0 120 7`` start, total and label. Anything else is text.
    """
    if all(map(is_integer, fields)) and len(fields) <= 3:
        without = len(fields) == 2 and int(fields[1]) == -1
        return None if without else int(fields[-1])
    return separator.join(fields).strip(' "') or None


def is_integer(text: str) -> bool:
    """Whether a label is read as a number: decimal digits, with a sign or not."""
    return re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) is not None


def _require_some_exist(videos: list[Video], spec: str, key: str) -> None:
    """A wrong root fails here, at the start, instead of skipping every clip of a run."""
    step = max(1, len(videos) // PROBED_PATHS)
    probed = videos[::step][:PROBED_PATHS]
    if not any(os.path.exists(video.path) or in_shard(video.path) for video in probed):
        raise ConfigError(
            f"{key}={spec}: none of {len(probed)} listed paths exists, for example "
            f"{probed[0].path}; set {_root_key(key)}=FOLDER, where the paths start"
        )


def _root_key(key: str) -> str:
    """What messages call the root of a list that they call ``key``."""
    return "data.root" if "." in key else "root"
