"""Options of what recognition does. Importing them loads neither PyTorch nor PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tats_fast.config import ConfigError
from tats_fast.config.options import FromCheckpoint, Options, cores, follow, option
from tats_fast.config.sampling import STRIDE, settle_sampling
from tats_fast.config.schema import PROBES

_AS_TRAINED = "as the encoder was trained"


@dataclass(frozen=True, kw_only=True)
class Decoding(Options):
    """How videos are decoded, and their clips computed."""

    batch_size: int = option(16, "clips on the device at once", at_least=1)
    workers: int = option(cores, "decoding processes", unset="one per core", at_least=1)
    timeout: float = option(
        60.0, "seconds to wait for a video's next clip before giving it up", above=0, metavar="S"
    )


@dataclass(frozen=True, kw_only=True)
class Strided(Options):
    """How the frames of a clip are chosen."""

    stride: int | None = option(
        None,
        "frames between two sampled frames; 0 = one frame from each of equal segments of the "
        "video, as for Something-Something",
        unset=STRIDE,
        at_least=0,
        instead_of="fps",
    )
    fps: float | None = option(
        None,
        "sampled frames per second, by the files' timestamps, in the place of --stride",
        above=0,
        metavar="F",
        instead_of="stride",
    )

    otherwise: ClassVar[int | None] = STRIDE
    """``stride`` where neither it nor ``fps`` is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_sampling(self, self.otherwise)

    @property
    def sampling(self) -> str:
        """The same in words."""
        if self.fps is not None:
            return f"{self.fps:g} frames per second"
        return f"stride {self.stride}" if self.stride else "one frame per segment"


@dataclass(frozen=True, kw_only=True)
class Views(Strided):
    """Clips and crops of each video; the defaults are VideoMAE's for Kinetics and UCF101."""

    clips: int = option(5, "clips per video", at_least=1)
    crops: int = option(3, "crops per clip, along the long side", at_least=1)

    def frames(
        self, total: int, num_frames: int, times: Sequence[float] | None = None
    ) -> list[list[int]]:
        """Frame numbers of each clip of a video of ``total`` frames.

        times: when each frame is shown, s, ascending; needed with ``fps``.
        """
        # Here, because it loads PyAV.
        from tats_fast.data.timed import frames_by_time
        from tats_fast.data.views import dense_views, segment_views, spread_views

        if self.fps is not None:
            return spread_views(frames_by_time(times[:total], self.fps), num_frames, self.clips)
        if self.stride == 0:
            return segment_views(total, num_frames, self.clips)
        return dense_views(total, num_frames, self.stride, self.clips)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Decoding, FromCheckpoint):
    """``tats-fast evaluate``."""

    list: str | None = option(
        None, "list file with labels (default: the run's data.eval)", metavar="LIST"
    )
    root: str | None = option(
        None,
        "folder that the list's paths start from (default: the list's folder; for the run's list "
        "its data.root)",
        metavar="DIR",
    )
    out: str | None = option(
        None, "folder to write (default: evaluation in the run's folder)", metavar="DIR"
    )
    stride: int | None = follow(Views, "stride", "the run's")
    fps: float | None = follow(Views, "fps", "the run's")
    clips: int | None = follow(Views, "clips", "the run's")
    crops: int | None = follow(Views, "crops", "the run's")


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(Decoding, Strided):
    """How a video becomes a feature: its middle clip and centre crop, through the encoder."""

    grid: int = option(
        7, "attentive: tokens are averaged to at most N x N places per token-frame", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(FeatureSettings, FromCheckpoint):
    """``tats-fast probe``."""

    otherwise = None

    train: str = option(help="list file with labels", metavar="LIST")
    eval: str = option(help="list file with labels", metavar="LIST")
    root: str | None = option(
        None, "folder that the lists' paths start from (default: each list's)", metavar="DIR"
    )
    kinds: tuple[str, ...] = option(
        PROBES, f"some of {','.join(PROBES)}", unset="all", choices=PROBES, metavar="A,B"
    )
    out: str = option("probe", "folder to write", metavar="DIR")
    cache: str | None = option(
        None, "folder of the features (default: features in --out)", metavar="DIR"
    )
    stride: int | None = follow(Strided, "stride", _AS_TRAINED)
    fps: float | None = follow(Strided, "fps", _AS_TRAINED)
    seed: int = option(0, "seed of the held-out part and of the attentive probe", at_least=0)


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(Decoding, Strided):
    """Which windows of a video are encoded, and what is stored of each."""

    what: str = option("mean", "mean over tokens, or all tokens", choices=("mean", "tokens"))
    format: str = option("npy", "format of the files", choices=("npy", "safetensors"))
    hop: int | None = option(
        None,
        "frames between the starts of two windows, with --fps sampled frames (default: no overlap)",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride == 0 and self.hop is not None:
            raise ConfigError(
                f"hop={self.hop}: with stride=0 a video is one window; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(ExtractSettings, FromCheckpoint):
    """``tats-fast extract-features``."""

    otherwise = None

    videos: str = option(help="list file or folder of videos", metavar="FOLDER_OR_LIST")
    root: str | None = option(
        None, "folder that the list's paths start from (default: the list's)", metavar="DIR"
    )
    out: str = option(help="folder to write", metavar="DIR")
    stride: int | None = follow(Strided, "stride", _AS_TRAINED)
    fps: float | None = follow(Strided, "fps", _AS_TRAINED)
