"""Options of ``tats-fast prepare``, ``make-benchmark`` and ``verify``. Importing them does not load
PyAV."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.config.checks import require
from tats_fast.config.generated import SceneConfig
from tats_fast.config.options import Options, cores, option
from tats_fast.config.sampling import STRIDE
from tats_fast.prepare.layouts import READERS

DATASETS = (*READERS, "folder")
WITH_SPLITS = ("ucf101", "hmdb51")


@dataclass(frozen=True)
class Recipe(Options):
    """How copies are made: in H.264, which GPU decoders read.

    On average gop/2 frames are decoded in vain before a clip; a clip of 16 frames at stride 4 spans
    61.

    Raises:
        ConfigError: a value out of range; one line.
    """

    codec: str = option(
        "h264",
        "make small copies with many keyframes, and list these",
        flag="--transcode",
        unset="off",
        choices=("h264",),
        nargs="?",
        const="h264",
    )
    short_side: int = option(256, "largest short side of a copy, pixels")
    gop: int = option(16, "frames between two keyframes of a copy", at_least=1)
    quality: int | None = option(
        None, "quality of copies (CRF): lower is better", unset="20", at_least=0, at_most=51
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        even = self.short_side >= 16 and self.short_side % 2 == 0
        require(even, "short_side", self.short_side, "must be an even number from 16 on")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Options):
    """``tats-fast prepare``. Raises ``ConfigError`` for what does not go together."""

    dataset: str = option(
        help="benchmark whose official files are read, or any folder",
        flag="dataset",
        choices=DATASETS,
    )
    videos: str = option(help="folder of videos, searched recursively", metavar="DIR")
    out: str = option(help="folder to write", metavar="DIR")
    annotations: str | None = option(
        None, "folder of the official files; none for folder", metavar="DIR"
    )
    split: int | None = option(
        None, "split of ucf101 and hmdb51: 1, 2 or 3 (default: 1)", at_least=1, at_most=3
    )
    quarantine: str | None = option(
        None, "file of path<TAB>reason lines: videos to leave out", metavar="FILE"
    )
    with_hash: bool = option(False, "add each file's SHA-256 to the manifest", flag="--hash")
    workers: int = option(cores, "processes", unset="one per core", at_least=1)
    recipe: Recipe | None = None
    """How to transcode; none = use the videos as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "folder" and self.annotations is not None:
            raise ConfigError("annotations: 'folder' reads none; leave the option out")
        if self.dataset != "folder" and self.annotations is None:
            raise ConfigError(f"annotations: {self.dataset} needs the folder of official files")
        if self.split is not None and self.dataset not in WITH_SPLITS:
            raise ConfigError(f"split: {self.dataset} has no numbered splits; leave it out")
        require(os.path.isdir(self.videos), "videos", self.videos, "no such folder")
        for name in ("videos", "out"):
            path = os.path.abspath(getattr(self, name))
            broken = any(mark in path for mark in "\r\n")
            require(not broken, name, repr(path), "a list cannot hold a folder with a line break")
            object.__setattr__(self, name, path)


@dataclass(frozen=True, kw_only=True)
class MakeBenchmarkOptions(SceneConfig):
    """``tats-fast make-benchmark``. Raises ``ConfigError`` for what does not go together."""

    section: ClassVar[str] = ""

    benchmark: str = option(
        "motion", "what to make", flag="benchmark", choices=("motion",), nargs="?"
    )
    out: str = option(help="folder to write, new or empty", metavar="DIR")
    clips: int = option(48, "training videos of each class", at_least=1)
    test_clips: int = option(32, "test videos of each class", at_least=1)
    frames: int = option(16, "frames of a video", at_least=2)
    side: int = option(64, "width and height, pixels; even", at_least=16)
    seed: int = option(0, "seed of everything drawn", at_least=0)
    lossless: bool = option(False, "FFV1 in .mkv and not H.264 in .mp4")

    def __post_init__(self) -> None:
        super().__post_init__()
        even = f"must be even, for example {self.side + 1}"
        require(self.side % 2 == 0, "side", self.side, even)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """``tats-fast verify``. Raises ``ConfigError`` for values that make no sense."""

    list: str | None = option(None, "list file, as for data.train", metavar="FILE")
    root: str | None = option(
        None, "folder of the list's paths; without a list, all videos in it", metavar="DIR"
    )
    out: str = option(help="folder to write", metavar="DIR")
    mode: str = option(
        "quick",
        "decode the first frame and the last keyframe of each file, or every frame",
        choices=("quick", "full"),
    )
    workers: int = option(cores, "processes", unset="one per core", at_least=1)
    timeout: float | None = option(
        None, "seconds per file (default: 60 quick, 600 full)", above=0, metavar="S"
    )
    min_share: float = option(
        0.5,
        "least share of its claimed length that a good file has",
        at_least=0,
        at_most=1,
        metavar="X",
    )
    window: int = option(
        (ModelConfig.num_frames - 1) * STRIDE + 1,
        "frames spanned by a clip, (model.num_frames - 1) * data.stride + 1; shorter videos get "
        "a warning",
        flag="--frames",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.list is None and self.root is None:
            raise ConfigError("verify needs list=FILE or root=FOLDER: which videos to check")
