"""``tats-fast verify``: which files of a data set can be trained on, before training on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.data.bad_files import bad_lines
from tats_fast.data.files import shown, write_lines
from tats_fast.data.limits import VIDEO_SUFFIXES
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.workers.jobs import run_jobs
from tats_fast.prepare.examine import examine
from tats_fast.prepare.options import VerifyOptions

# Seconds that one file may take; a feature film decodes in less.
_TIMEOUTS = {"quick": 60.0, "full": 600.0}


def verify(options: VerifyOptions) -> dict[str, str]:
    """Look into every video and write ``good.txt``, ``bad.txt`` and ``verify.jsonl``.

    Prints progress and a summary. A path may be listed more than once.

    Returns:
        The reason of each bad file by its absolute path.

    Raises:
        ConfigError: a list that ``read_videos`` refuses, or a folder that cannot be written.
    """
    out = Path(options.out)
    spec, key = (options.root, "root") if options.list is None else (options.list, "list")
    listed = read_videos(spec, options.root, key)
    here = os.getcwd()
    videos = [Video(os.path.join(here, video.path), video.label) for video in listed]
    for name in ("good.txt", "bad.txt", "verify.jsonl"):
        if options.list and os.path.realpath(options.list) == os.path.realpath(out / name):
            raise ConfigError(
                f"out={out}: would overwrite list={options.list}; choose another folder"
            )
    import av  # noqa: F401  (once here, and not in each process)

    timeout = _TIMEOUTS[options.mode] if options.timeout is None else options.timeout
    outcomes = run_jobs(
        lambda path: examine(path, options.mode, options.min_share, options.window),
        [video.path for video in videos],
        record=out / "verify.jsonl",
        workers=options.workers,
        timeout=timeout,
        title="files",
        settings=f"{options.mode} min_share={options.min_share:g} frames={options.window}",
    )
    bad: dict[str, str] = {}
    for path, outcome in outcomes.items():
        if "\n" in path or "\r" in path:
            bad[path] = "a name with a line break cannot be listed"
        elif "error" in outcome:
            bad[path] = outcome["error"]
    write_lines(out / "good.txt", good_lines(v for v in videos if v.path not in bad))
    write_lines(out / "bad.txt", bad_lines(bad))
    print("\n".join(summary_lines(outcomes, bad, options.mode)))
    if bad:
        print(f"{len(bad)} of {len(outcomes)} files are bad: see {shown(str(out / 'bad.txt'))}")
    else:
        print(f"all {len(outcomes)} files are good: see {shown(str(out / 'good.txt'))}")
    return bad


def summary_lines(
    outcomes: Mapping[str, Mapping[str, Any]], bad: Mapping[str, str], mode: str
) -> list[str]:
    """A table of how many files are good, bad (by reason) and odd (by kind of warning)."""
    # "truncated: 30 of 150 frames" counts as "truncated".
    reasons = Counter(reason.partition(":")[0] for reason in bad.values())
    warnings = Counter(
        kind for path, o in outcomes.items() if path not in bad for kind in o["warnings"]
    )
    rows = [("good", "", len(outcomes) - len(bad))]
    rows += [("bad", reason, count) for reason, count in reasons.most_common()]
    rows += [("warning", kind, count) for kind, count in warnings.most_common()]
    return [
        f"{len(outcomes)} files, mode {mode}",
        *(f"  {count:>8}  {verdict:<8} {what}".rstrip() for verdict, what, count in rows),
    ]


def good_lines(videos: Iterable[Video]) -> list[str]:
    """Lines that ``read_videos`` reads back as the same videos; their paths must be absolute and
    hold no line break.

    A path per line where that is enough, else ``path<TAB>label``. One separator holds for a whole
    list, so a video without a label among labelled ones is written ``path<TAB>0<TAB>-1``.
    """
    videos = list(videos)
    if all(video.label is None and video.path.lower().endswith(VIDEO_SUFFIXES) for video in videos):
        return [video.path for video in videos]
    lines = []
    for video in videos:
        path = video.path if video.path == video.path.strip() else f'"{video.path}"'
        label = "0\t-1" if video.label is None else video.label
        lines.append(f"{path}\t{label}")
    return lines
