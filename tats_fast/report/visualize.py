"""From a checkpoint and some videos to a folder with a page and pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tats_fast.config import ConfigError, RunConfig
from tats_fast.data.limits import VIDEO_SUFFIXES
from tats_fast.data.lists import read_videos
from tats_fast.data.opening import DecodeError
from tats_fast.data.shards import is_shard
from tats_fast.data.timed import timed_clip
from tats_fast.data.video import load_clip
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.models.restore import load_models
from tats_fast.report.analysis import analyze
from tats_fast.report.figures import clip_figure, summary_figure
from tats_fast.report.page import Report, render_page
from tats_fast.report.pictures import heat_top
from tats_fast.report.probes import read_probes
from tats_fast.run_folder import STEP_PREFIX, find_checkpoint, list_checkpoints, read_rows

LOGGER = logging.getLogger("tats_fast")

MAX_CLIPS = 12  # that one page shows; a folder may hold thousands
TIMEOUT = 60.0  # seconds that a video may take


def write_report(
    checkpoint: str | Path,
    videos: Sequence[str | Path],
    out: str | Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Path:
    """Write ``index.html``, ``clip_00.png``, ``clip_01.png``, ... and ``summary.png`` into ``out``.

    Args:
        checkpoint: a checkpoint folder, or a run folder (then its newest checkpoint). If it lies
            in a run folder, the run's numbers up to its step become curves, and its probes of
            this checkpoint (see ``report.probes``) a table.
        videos: video files, list files or folders; the first ``MAX_CLIPS`` readable ones are shown.
        out: made if missing; files of these names in it are replaced.
        seed: decides the draws.

    Returns:
        the path of ``index.html``.

    Raises:
        ConfigError: there is no checkpoint, or no video; one line.
        DecodeError: none of the videos could be read; one line.
    """
    folder = find_checkpoint(checkpoint)
    config, mae, sampler = load_models(folder, device)
    paths = expand_videos(videos)
    clips, unreadable, omitted = _decode(config, paths)
    pixels = torch.from_numpy(np.stack([clip for _, clip in clips])).to(device)
    analyses = analyze(config, mae, sampler, pixels, seed=seed)
    run, step = _run_of(folder)
    report = Report(
        config=config,
        checkpoint=f"checkpoint {folder.name}" if run is None else f"run {run.name}, step {step}",
        clips=list(zip([name for name, _ in clips], analyses, strict=True)),
        unreadable=unreadable,
        omitted=omitted,
        metrics=[] if run is None else read_rows(run / "metrics.jsonl", step),
        evaluations=[] if run is None else read_rows(run / "eval.jsonl", step),
        probes=None if run is None else read_probes(run, folder),
        seed=seed,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    top = heat_top(analyses)
    for i, analysis in enumerate(analyses):
        clip_figure(config, analysis, top).savefig(out / f"clip_{i:02d}.png")
    summary_figure(config, analyses).savefig(out / "summary.png")
    page = out / "index.html"
    page.write_text(render_page(report), encoding="utf-8")
    return page


def expand_videos(specs: Sequence[str | Path]) -> list[str]:
    """Paths of videos; folders, shards and list files are replaced by the videos they name.

    Raises:
        ConfigError: none given, or a folder or list without videos; one line.
    """
    if not specs:
        raise ConfigError("video: give at least one video, folder or list file")
    paths: list[str] = []
    for spec in map(os.fspath, specs):
        if is_shard(spec) or os.path.isdir(spec) or (os.path.isfile(spec) and not _is_video(spec)):
            paths += [video.path for video in read_videos(spec, key="video")]
        else:
            paths.append(spec)
    return paths


def _is_video(path: str) -> bool:
    """By its ending, or by a zero byte, which no list of paths holds."""
    if path.lower().endswith(VIDEO_SUFFIXES):
        return True
    with open(path, "rb") as file:
        return b"\0" in file.read(4096)


def _decode(
    config: RunConfig, paths: list[str]
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, str]], int]:
    """Names and centre clips (T, S, S, 3) uint8, names of unreadable videos and the reasons, and
    how many videos were not tried."""
    model = config.model
    clips: list[tuple[str, np.ndarray]] = []
    failures: list[DecodeError] = []

    def load(path: str) -> np.ndarray | str:
        try:
            if config.data.fps is not None:
                return timed_clip(path, model.num_frames, config.data.fps, model.image_size)
            return load_clip(path, model.num_frames, config.data.stride, model.image_size)
        except DecodeError as error:
            return error.reason

    with Workers(load, 1, TIMEOUT) as pool:  # one process: in the order given
        for path, answer in pool.map(paths):
            if isinstance(answer, np.ndarray):
                clips.append((_short_name(path), answer))
            else:
                reason = answer.reason if isinstance(answer, Lost) else answer
                failures.append(DecodeError(path, reason))
                LOGGER.warning("video left out, it cannot be read: %s", failures[-1])
            if len(clips) == MAX_CLIPS:
                break
    if not clips:
        first = failures[0]
        more = f" (and none of the {len(failures)} videos can be read)" if len(failures) > 1 else ""
        raise DecodeError(first.path, first.reason + more)
    if omitted := len(paths) - len(clips) - len(failures):
        LOGGER.info("showing %d videos; %d more were given", len(clips), omitted)
    unreadable = [(_short_name(error.path), error.reason) for error in failures]
    return clips, unreadable, omitted


def _short_name(path: str) -> str:
    """Folder and file name: enough to tell clips apart, without the machine's own folders."""
    # A name that is no valid text would not encode into the page.
    name = "/".join(Path(path).parts[-2:])
    return name.encode("utf-8", "replace").decode("utf-8")


def _run_of(checkpoint: Path) -> tuple[Path | None, int]:
    """The run folder that holds ``runs/<name>/checkpoints/step_N``, and N; (None, 0) elsewhere."""
    folder = checkpoint.resolve()
    run = folder.parent.parent
    if folder not in list_checkpoints(run):
        return None, 0
    return run, int(folder.name[len(STEP_PREFIX) :])
