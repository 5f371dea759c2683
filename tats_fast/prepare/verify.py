"""``tats-fast verify``: which files of a data set can be trained on, before training on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError, DataConfig, ModelConfig
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.workers.jobs import run_jobs
from tats_fast.prepare.examine import MODES, probe
from tats_fast.prepare.files import write_lines
from tats_fast.prepare.verify_lists import bad_lines, good_lines

# Seconds that one file may take; a feature film decodes in less.
_TIMEOUTS = {"quick": 60.0, "full": 600.0}


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify. Raises ``ConfigError`` for values that make no sense."""

    mode: str = "quick"
    """"quick" decodes the first frame and the last keyframe of each file, "full" every frame."""
    workers: int = 1
    """Processes."""
    timeout: float | None = None
    """Seconds that one file may take; none = 60 (quick) or 600 (full)."""
    min_share: float = 0.5
    """Share of its claimed length below which a file is bad."""
    window: int = 1
    """Frames that a training clip spans; shorter videos get a warning."""

    def __post_init__(self) -> None:
        for ok, text in (
            (self.mode in MODES, f"--mode={self.mode}: must be one of {', '.join(MODES)}"),
            (self.workers >= 1, f"--workers={self.workers}: must be at least 1"),
            (
                self.timeout is None or 0 < self.timeout < float("inf"),
                f"--timeout={self.timeout}: must be above 0",
            ),
            (0 <= self.min_share <= 1, f"--min-share={self.min_share}: must be between 0 and 1"),
            (self.window >= 1, f"--frames={self.window}: must be at least 1"),
        ):
            if not ok:
                raise ConfigError(text)


def listed_videos(list_file: str | None, root: str | None) -> list[Video]:
    """The videos of a list whose relative paths start from ``root``, or all below ``root``.

    Paths are absolute. Raises ``ConfigError`` as ``read_videos`` does.
    """
    if list_file is None and root is None:
        raise ConfigError("verify needs --list=FILE or --root=FOLDER, to know what to look at")
    try:
        if list_file is None:
            videos = read_videos(root, key="--root")
        else:
            videos = read_videos(list_file, root, key="--list")
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.root", "--root")) from error
    here = os.getcwd()
    return [Video(os.path.join(here, video.path), video.label) for video in videos]


def default_window() -> int:
    """Frames that a clip of the default configuration spans."""
    return (ModelConfig.num_frames - 1) * DataConfig.stride + 1


def verify(
    videos: Sequence[Video], out: Path, options: VerifyOptions, list_file: str | None = None
) -> dict[str, str]:
    """Look into every video and write ``good.txt``, ``bad.txt`` and ``verify.jsonl`` to ``out``.

    videos: with absolute paths; a path may occur more than once.
    list_file: where they were listed; it will not be overwritten.

    Prints progress and a summary. Returns the reason of each bad file by its path. Raises
    ``ConfigError`` where ``out`` cannot be written.
    """
    for name in ("good.txt", "bad.txt", "verify.jsonl"):
        if list_file is not None and _is_same_file(list_file, out / name):
            raise ConfigError(f"--out={out}: would overwrite --list; choose another folder")
    import av  # noqa: F401  (once here, and not in each process)

    timeout = _TIMEOUTS[options.mode] if options.timeout is None else options.timeout
    outcomes = run_jobs(
        lambda path: probe(path, options.mode, options.min_share, options.window),
        [video.path for video in videos],
        record=out / "verify.jsonl",
        workers=options.workers,
        timeout=timeout,
        title="files",
        settings=f"{options.mode} min_share={options.min_share:g} frames={options.window}",
    )
    reasons = {path: _reason(path, outcome) for path, outcome in outcomes.items()}
    bad = {path: reason for path, reason in reasons.items() if reason is not None}
    write_lines(out / "good.txt", good_lines(v for v in videos if v.path not in bad))
    write_lines(out / "bad.txt", bad_lines(bad))
    print("\n".join(summary_lines(outcomes, bad, options.mode)))
    if bad:
        print(f"{len(bad)} of {len(outcomes)} files are bad: see {out / 'bad.txt'}")
    else:
        print(f"all {len(outcomes)} files are good: see {out / 'good.txt'}")
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


def _is_same_file(one: str, other: Path) -> bool:
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(other)


def _reason(path: str, outcome: Mapping[str, Any]) -> str | None:
    """Why a file is bad, or None."""
    if "\n" in path or "\r" in path:
        return "a name with a line break cannot be listed"
    return outcome.get("error")
