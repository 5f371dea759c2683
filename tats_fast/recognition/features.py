"""Features of every listed video, computed once and kept on disk.

A cache folder holds one folder per key, the hash of all that the features depend on:
``mean.npy`` (V, C) fp32, ``tokens.npy`` (V, F*G*G, C) fp16 if asked for, ``index.json``. Rows
follow the list; those of unreadable files are zeros and never used. ViT-B with 16 frames and G = 7
takes 3 MB per 1000 videos for the means and 0.6 GB for the tokens, 2.4 GB with all tokens (G = 14).

Legend: V listed videos, M readable ones, B clips of a batch, T frames, F token-frames, G grid side,
N tokens, C width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video
from tats_fast.data.video import DecodeError
from tats_fast.data.views import decode_views, dense_views, segment_views, side_crops
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.patchify import normalised_video
from tats_fast.recognition.probe_heads import Rows

# Part of every key: raise it when the same settings come to mean other features.
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How a video becomes a feature: its middle clip and centre crop, through the encoder."""

    stride: int = 4
    """Frames from one of the clip to the next; 0 = one frame per equal segment of the video, as
    for Something-Something."""
    tokens: bool = True
    """Also keep tokens, for the attentive probe."""
    grid: int = 7
    """Kept tokens are averaged to at most grid x grid places per token-frame."""
    batch_size: int = 16
    """Clips encoded at once."""
    workers: int = 1
    """Decoding processes."""
    timeout: float = 60.0
    """Seconds after which a video counts as unreadable."""

    def __post_init__(self) -> None:
        for name, least in (("stride", 0), ("grid", 1), ("batch_size", 1), ("workers", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option}={getattr(self, name)}: must be at least {least}")
        if not self.timeout > 0:
            raise ConfigError(f"--timeout={self.timeout}: must be above 0")


@dataclass(frozen=True)
class Features:
    """Features of the M readable videos of a list, in its order.

    mean: (M, C) fp32, over the tokens. tokens: M rows of (F*G*G, C) fp16, left on disk; or None.
    indices: (M,) int64, positions in the list. bad: (path, reason) of each unreadable file.
    """

    mean: Tensor
    tokens: Rows | None
    indices: Tensor
    bad: list[tuple[str, str]]


def video_features(
    encoder: VideoEncoder, videos: Sequence[Video], settings: FeatureSettings, cache: Path
) -> Features:
    """Features of ``videos``, from ``cache`` if it has them. The encoder is put in evaluation mode
    meanwhile; on a GPU it computes in bf16.

    A video that cannot be read is left out and named in ``bad``. One that killed its process or
    took too long is tried again by the next call, together with the rest of its list.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    folder = cache / _key(encoder, videos, settings)
    if not _complete(folder):
        _compute(encoder, videos, settings, folder)
    return _read(folder, videos, settings.tokens)


def encoder_hash(encoder: VideoEncoder) -> str:
    """SHA-256 of what an encoder computes: parameters, sizes and the norms' epsilon."""
    digest = hashlib.sha256()
    # Every attention backend computes the same function.
    digest.update(repr(replace(encoder.config, attention="auto")).encode())
    norms = [m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)]
    digest.update(repr(norms).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: NumPy has no bf16.
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(plain.numpy().data)
    return digest.hexdigest()


def _key(encoder: VideoEncoder, videos: Sequence[Video], settings: FeatureSettings) -> str:
    """Name of the cache entry. Labels are not part of it; a replaced video file is."""
    used = {k: v for k, v in asdict(settings).items() if k in ("stride", "tokens", "grid")}
    device = next(encoder.parameters()).device.type
    digest = hashlib.sha256(repr((_VERSION, used, device, encoder_hash(encoder))).encode())
    for video in videos:
        try:
            stat = os.stat(video.path)
            stamp = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            stamp = "missing"
        digest.update(os.fsencode(video.path) + b"\0" + stamp.encode() + b"\0")
    return digest.hexdigest()[:32]


def _complete(folder: Path) -> bool:
    """Whether the entry is there and lacks nothing that another try could read."""
    try:
        return not json.loads((folder / "index.json").read_text())["lost"]
    except FileNotFoundError:
        return False


def _compute(
    encoder: VideoEncoder, videos: Sequence[Video], settings: FeatureSettings, folder: Path
) -> None:
    """Write the entry ``folder``: beside it first, so that it appears whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder.parent}: cannot be written: {error.strerror}") from error
    try:
        _write(encoder, videos, settings, temporary)
        shutil.rmtree(folder, ignore_errors=True)  # an entry that lacks lost files
        os.rename(temporary, folder)
    except OSError as error:
        # Full disk, or a second process finished the same entry in between: then use that one.
        if not _complete(folder):
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    encoder: VideoEncoder, videos: Sequence[Video], settings: FeatureSettings, folder: Path
) -> None:
    config = encoder.config
    bad: dict[int, str] = {}
    lost: list[int] = []
    side = min(settings.grid, config.image_size // config.patch_size)
    places = config.token_frames * side * side
    create = partial(np.lib.format.open_memmap, mode="w+")
    means = create(folder / "mean.npy", dtype=np.float32, shape=(len(videos), config.width))
    tokens = None
    if settings.tokens:
        shape = (len(videos), places, config.width)
        tokens = create(folder / "tokens.npy", dtype=np.float16, shape=shape)

    clips = _decoded(encoder, videos, settings, bad, lost)
    for numbers, batch in batches(clips, settings.batch_size):
        features = encode(encoder, batch)
        means[numbers] = features.mean(1).cpu().numpy()
        if tokens is not None:
            grid = pool_tokens(features, config.token_frames, side)
            tokens[numbers] = grid.half().cpu().numpy()
    for array in (means, tokens):
        if array is not None:
            array.flush()
    index = {"bad": sorted(bad.items()), "lost": sorted(lost)}
    (folder / "index.json").write_text(json.dumps(index))


def _decoded(
    encoder: VideoEncoder,
    videos: Sequence[Video],
    settings: FeatureSettings,
    bad: dict[int, str],
    lost: list[int],
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, clip (T, S, S, 3) uint8) of each readable video, as it is decoded; the others go
    into ``bad`` with their reason, and also into ``lost`` if another try may succeed."""
    config = encoder.config

    def choose(total: int) -> list[list[int]]:
        if settings.stride == 0:
            return segment_views(total, config.num_frames, 1)
        return dense_views(total, config.num_frames, settings.stride, 1)

    def decode(number: int) -> np.ndarray | str:
        path = videos[number].path
        try:
            views = decode_views(path, choose, side_crops(1), config.image_size)
        except DecodeError as error:
            return error.reason
        return views[0, 0]

    with Workers(decode, min(settings.workers, len(videos)), settings.timeout) as pool:
        for number, outcome in pool.map(range(len(videos))):
            if isinstance(outcome, np.ndarray):
                yield number, outcome
                continue
            bad[number] = outcome.reason if isinstance(outcome, Lost) else outcome
            if isinstance(outcome, Lost):
                lost.append(number)


def batches(
    clips: Iterator[tuple[int, np.ndarray]], size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(numbers, clips (B, T, S, S, 3)) of up to ``size`` clips at a time."""
    numbers: list[int] = []
    batch: list[np.ndarray] = []
    for number, clip in clips:
        numbers.append(number)
        batch.append(clip)
        if len(batch) == size:
            yield numbers, np.stack(batch)
            numbers, batch = [], []
    if batch:
        yield numbers, np.stack(batch)


@torch.no_grad()
def encode(encoder: VideoEncoder, clips: np.ndarray) -> Tensor:
    """Clips (B, T, S, S, 3) uint8 RGB -> features (B, N, C) fp32 on the encoder's device."""
    device = next(encoder.parameters()).device
    video = normalised_video(torch.from_numpy(clips).to(device))
    training = encoder.training
    encoder.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return encoder.forward_features(video).float()
    finally:
        encoder.train(training)


def pool_tokens(features: Tensor, frames: int, side: int) -> Tensor:
    """Average the places of each token-frame on a side x side grid: (B, N, C) ->
    (B, frames * side * side, C), in the order (frame, row, column)."""
    places = features.shape[1] // frames
    rows = round(places**0.5)
    maps = features.unflatten(1, (frames * rows, rows)).movedim(-1, 1)
    maps = maps.unflatten(2, (frames, rows)).movedim(2, 1).flatten(0, 1)  # (B*F, C, rows, rows)
    pooled = adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
    return pooled.unflatten(0, (-1, frames)).flatten(1, 2)


def _read(folder: Path, videos: Sequence[Video], with_tokens: bool) -> Features:
    reasons = dict(json.loads((folder / "index.json").read_text())["bad"])
    rows = torch.tensor([n for n in range(len(videos)) if n not in reasons], dtype=torch.int64)
    mean = torch.from_numpy(np.load(folder / "mean.npy"))[rows]
    tokens = None
    if with_tokens:
        # Copy on write: torch warns of memory that it may not write to.
        mapped = np.load(folder / "tokens.npy", mmap_mode="c")
        tokens = Rows(torch.from_numpy(mapped), rows)
    bad = [(videos[number].path, reason) for number, reason in reasons.items()]
    return Features(mean, tokens, rows, bad)
