"""All videos below a folder, found once, then looked up by name without touching the disk."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable

from tats_fast.data.lists import scan_videos
from tats_fast.prepare.layouts.annotations import Row


class VideoIndex:
    """The videos below ``root``, but not below ``skip``.

    Raises ``ConfigError`` if ``root`` is no readable folder.
    """

    def __init__(self, root: str, skip: str | None = None) -> None:
        self.root = root
        self.paths, self.closed = scan_videos(root, "videos", skip)
        """Paths relative to ``root``, sorted, of the videos and of folders that cannot be read."""
        self._known = set(self.paths)
        self._exact: dict[str, list[str]] = defaultdict(list)
        self._folded: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            stem = os.path.splitext(os.path.basename(path))[0]
            self._exact[stem].append(path)
            self._folded[stem.casefold()].append(path)

    def find(self, row: Row, exact_names: bool = False) -> str | None:
        """Relative path of the row's video, or None.

        ``row.stems[0]`` may be such a path. Otherwise the first of ``row.stems`` that is there
        counts, spelled exactly or, unless ``exact_names``, in upper or lower case. Of several such
        files the one with the most of ``row.folders`` above it wins, then one with the ending of
        ``row.name``.
        """
        if row.stems[0] in self._known:
            return row.stems[0]
        hints = {_plain(folder) for folder in row.folders}
        suffix = os.path.splitext(row.name)[1].lower()

        def merit(path: str) -> tuple[int, bool]:
            folders = {_plain(part) for part in os.path.dirname(path).split(os.sep)}
            return len(hints & folders), path.lower().endswith(suffix)

        for stem in row.stems:
            hits = self._exact.get(stem)
            if hits is None and not exact_names:
                hits = self._folded.get(stem.casefold())
            if hits:
                return max(hits, key=merit) if len(hits) > 1 else hits[0]
        return None


def _plain(folder: str) -> str:
    """Kinetics copies write class folders with spaces or underscores, UCF101 copies vary case."""
    return folder.replace("_", " ").casefold()


def target_names(paths: Iterable[str], suffix: str) -> dict[str, str]:
    """A new relative path with the ending ``suffix`` for each of ``paths``, all different.

    ``a/b.avi`` -> ``a/b.mp4``; where ``a/b.webm`` is there too, ``a/b.avi.mp4``, and where that is
    taken (by ``a/b.avi.mov``) ``a/b.avi.2.mp4``.
    """
    stems = {path: os.path.splitext(path)[0] for path in paths}
    sharing = Counter(stem.casefold() for stem in stems.values())
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path, stem in stems.items():
        whole, number = path if sharing[stem.casefold()] > 1 else stem, 1
        name = whole + suffix
        while name.casefold() in taken:
            number += 1
            name = f"{whole}.{number}{suffix}"
        taken.add(name.casefold())
        names[path] = name
    return names
