"""Features of every listed video, computed once and kept on disk.

A cache folder holds one folder per key, the hash of all that the features depend on:
``mean.npy`` (V, C) fp32, ``tokens.npy`` (V, F*G*G, C) fp16 if asked for, ``index.json``. Rows
follow the list; those of unreadable files are zeros and never used. ViT-B with 16 frames and G = 7
takes 3 MB per 1000 videos for the means and 0.6 GB for the tokens, 2.4 GB with all tokens (G = 14).

Legend: V listed videos, M readable ones, B clips of a batch, T frames, F token-frames, G grid side,
N tokens, C width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.data.files import writing
from tats_fast.data.lists import Video
from tats_fast.data.opening import BadFiles
from tats_fast.data.workers.record import stamps
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.patchify import normalised_video
from tats_fast.recognition.decoding import ViewReader, batches, inference, progress_of
from tats_fast.recognition.options import FeatureSettings, Views
from tats_fast.recognition.probe_heads import Rows

LOGGER = logging.getLogger("tats_fast")
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Of ``mean.npy`` and of ``tokens.npy``."""
# Part of every key: raise it when the same settings come to mean other features.
_VERSION = 1


@dataclass(frozen=True)
class Features:
    """Features of the M readable videos of a list, in its order."""

    mean: Tensor
    """(M, C) fp32, over the tokens."""
    tokens: Rows | None
    """M rows of (F*G*G, C) fp16, left on disk; None where they were not asked for."""
    indices: Tensor
    """(M,) int64, positions in the list."""
    bad: BadFiles


def video_features(
    encoder: VideoEncoder,
    videos: Sequence[Video],
    settings: FeatureSettings,
    cache: Path,
    tokens: bool = True,
    title: str | None = None,
) -> Features:
    """Features of ``videos``, from ``cache`` if it has them. The encoder is put in evaluation mode
    meanwhile; on a GPU it computes in bf16.

    A video that cannot be read is left out and named in ``bad``. One that killed its process or
    took too long is tried again by the next call, together with the rest of its list.

    Args:
        tokens: also store tokens, for the attentive probe.
        title: what a progress display counts, in the plural; none = no display.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    folder = cache / _key(encoder, videos, settings, tokens)
    shapes = _shapes(encoder.config, len(videos), settings)
    stored = _stored(folder, videos, shapes, tokens)
    if stored is not None:
        return stored
    with _appearing(folder) as temporary:
        _write(encoder, videos, settings, temporary, tokens, title)
    return _read(folder, videos, shapes, tokens)


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


def _key(
    encoder: VideoEncoder, videos: Sequence[Video], settings: FeatureSettings, tokens: bool
) -> str:
    """Name of the cache entry. Labels are not part of it; a replaced video file is."""
    used = {"stride": settings.stride, "fps": settings.fps, "tokens": tokens, "grid": settings.grid}
    device = next(encoder.parameters()).device.type
    digest = hashlib.sha256(repr((_VERSION, used, device, encoder_hash(encoder))).encode())
    paths = [video.path for video in videos]
    for path, stamp in zip(paths, stamps(paths), strict=True):
        text = "missing" if stamp is None else " ".join(map(str, stamp))
        digest.update(os.fsencode(path) + b"\0" + text.encode() + b"\0")
    return digest.hexdigest()[:32]


def _shapes(config: ModelConfig, videos: int, settings: FeatureSettings) -> Shapes:
    side = min(settings.grid, config.image_size // config.patch_size)
    return (videos, config.width), (videos, config.token_frames * side * side, config.width)


def _stored(
    folder: Path, videos: Sequence[Video], shapes: Shapes, with_tokens: bool
) -> Features | None:
    """What the cache has, unless another try could read more, or the entry is damaged."""
    if not folder.exists():
        return None
    try:
        if json.loads((folder / "index.json").read_text())["lost"]:
            return None
        return _read(folder, videos, shapes, with_tokens)
    except (OSError, EOFError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        LOGGER.warning("%s: damaged (%s); these features are computed again", folder, reason)
        return None


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to be filled, so that ``folder`` appears whole or not at all."""
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)  # an entry that lacks lost files
        os.rename(temporary, folder)
    except OSError as error:
        # Full disk, or a second process finished the same entry in between: then use that one.
        if not (folder / "index.json").is_file():
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    encoder: VideoEncoder,
    videos: Sequence[Video],
    settings: FeatureSettings,
    folder: Path,
    with_tokens: bool,
    title: str | None,
) -> None:
    config = encoder.config
    side = min(settings.grid, config.image_size // config.patch_size)
    mean_shape, tokens_shape = _shapes(config, len(videos), settings)
    create = partial(np.lib.format.open_memmap, mode="w+")
    means = create(folder / "mean.npy", dtype=np.float32, shape=mean_shape)
    tokens = with_tokens and create(folder / "tokens.npy", dtype=np.float16, shape=tokens_shape)
    middle = Views(stride=settings.stride, fps=settings.fps, clips=1, crops=1)
    reader = ViewReader(videos, middle, config, settings.timeout)
    decoded = reader.read(range(len(videos)), settings.workers)
    clips = ((number, views[0]) for number, views in decoded)
    done = 0
    with progress_of(title, len(videos)) as progress:
        for numbers, batch in batches(clips, settings.batch_size):
            features = encode(encoder, batch)
            means[numbers] = features.mean(1).cpu().numpy()
            if with_tokens:
                grid = pool_tokens(features, config.token_frames, side)
                tokens[numbers] = grid.half().cpu().numpy()
            done += len(numbers)
            progress.at(done + len(reader.bad), len(reader.bad))
    means.flush()
    if with_tokens:
        tokens.flush()
    index = {"bad": sorted(reader.bad.items()), "lost": sorted(reader.lost)}
    (folder / "index.json").write_text(json.dumps(index))


def encode(encoder: VideoEncoder, clips: np.ndarray) -> Tensor:
    """Clips (B, T, S, S, 3) uint8 RGB -> features (B, N, C) fp32 on the encoder's device."""
    with inference(encoder) as device:
        video = normalised_video(torch.from_numpy(clips).to(device))
        return encoder.forward_features(video).float()


def pool_tokens(features: Tensor, frames: int, side: int) -> Tensor:
    """Average the places of each token-frame on a side x side grid: (B, N, C) ->
    (B, frames * side * side, C), in the order (frame, row, column)."""
    rows = round((features.shape[1] // frames) ** 0.5)
    maps = features.reshape(-1, rows, rows, features.shape[2]).movedim(-1, 1)  # (B*F, C, ...)
    pooled = adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)
    return pooled.unflatten(0, (-1, frames)).flatten(1, 2)


def _read(folder: Path, videos: Sequence[Video], shapes: Shapes, with_tokens: bool) -> Features:
    """Raises many things where the entry is damaged, ``ValueError`` for arrays of other shapes."""
    reasons = dict(json.loads((folder / "index.json").read_text())["bad"])
    bad = [(videos[number].path, reason) for number, reason in reasons.items()]
    rows = torch.tensor([n for n in range(len(videos)) if n not in reasons], dtype=torch.int64)
    mean = np.load(folder / "mean.npy")
    # Copy on write: torch warns of memory that it may not write to.
    mapped = np.load(folder / "tokens.npy", mmap_mode="c") if with_tokens else None
    for array, shape in zip((mean, mapped), shapes, strict=True):
        if array is not None and array.shape != shape:
            raise ValueError(f"an array of {array.shape}, expected {shape}")
    tokens = None if mapped is None else Rows(torch.from_numpy(mapped), rows)
    return Features(torch.from_numpy(mean)[rows], tokens, rows, bad)
