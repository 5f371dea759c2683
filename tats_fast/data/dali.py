"""Decoding with DALI: on the GPU (NVDEC), or on the CPU what its CPU decoder reads.

DALI gets the packets and frame numbers that our own sampler drew (``plan.py``), so it cuts what
PyAV would cut. It reads no container but our own: a damaged file may crash its reader, and it runs
in the training process. Its dynamic mode takes batches of any size and survives a bad sample, which
a pipeline does not promise; a batch that fails is halved until the culprit is alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from tats_fast.data.clip import region
from tats_fast.data.cutter import Encoded
from tats_fast.data.plan import Formats
from tats_fast.data.pyav import copies_packets

LOGGER = logging.getLogger("tats_fast")
CPU_FORMATS = Formats(
    frozenset({("vp8", "yuv420p"), ("vp9", "yuv420p")})
    | {("mjpeg", format) for format in ("yuvj420p", "yuvj422p", "yuvj444p")},
    # It knows BT.601 alone: FCC, BT.470BG, SMPTE 170M, and files that do not say (2).
    frozenset({2, 4, 5, 6}),
)
"""What DALI decodes without a GPU, to the same pixels as PyAV."""
GPU_FORMATS = Formats(
    frozenset(
        (codec, format)
        for codec in ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mjpeg")
        for format in ("yuv420p", "yuvj420p")
    )
)
"""What is given to NVDEC: 8-bit 4:2:0, which it reads in all of these codecs."""


def dali_problem() -> str | None:
    """Why DALI cannot be used here, or None."""
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return "DALI is not installed; pip install nvidia-dali-cuda130 (or -cuda120)"
    try:
        if find_spec("nvidia.dali.experimental.dynamic") is None:
            return (
                "this release of DALI has no dynamic mode; pip install 'nvidia-dali-cuda130>=2.4'"
            )
        import nvidia.dali.experimental.dynamic  # noqa: F401
    except Exception as error:  # a package that it needs, a library, another Python
        return f"DALI does not load ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]})"
    if not copies_packets():
        return "DALI gets its packets from PyAV 15 or newer; pip install -U av"
    return None


class DaliDecoder:
    """Decodes, crops, scales and mirrors planned clips, straight into tensors on ``device``."""

    def __init__(self, device: torch.device, size: int, threads: int) -> None:
        """size: side of the clips, pixels. threads: of DALI's host part; it decodes on them where
        there is no GPU."""
        import nvidia.dali.experimental.dynamic as ndd

        self.device = device
        self.size = size
        self.formats = GPU_FORMATS if device.type == "cuda" else CPU_FORMATS
        self._said = False
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._context = ndd.EvalContext(
            num_threads=max(1, threads),
            device_id=device.index if self._stream is not None else None,
            cuda_stream=self._stream,
        )

    def decode(self, clips: list[Encoded]) -> list[torch.Tensor | None]:
        """Per clip (K, T, S, S, 3) uint8, or None where DALI or the file failed."""
        if not clips:
            return []
        try:
            with self._context, self.queue():
                return list(self._decode_together(clips))
        except (RuntimeError, OSError, ValueError) as error:
            if len(clips) == 1:
                if not self._said:
                    self._said = True
                    LOGGER.warning(
                        "DALI could not decode %s (%s); PyAV decodes such clips, further ones "
                        "without a message: see host_decoded_frac",
                        clips[0].path,
                        " ".join(str(error).split())[:300],
                    )
                return [None]
        half = len(clips) // 2
        return self.decode(clips[:half]) + self.decode(clips[half:])

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Let later torch work on the device wait for ``decode``'s."""
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def finished(self) -> torch.cuda.Event | None:
        """An event behind all work queued so far; None on the CPU."""
        return None if self._stream is None else self._stream.record_event()

    def _decode_together(self, clips: list[Encoded]) -> torch.Tensor:
        """(len(clips), K, T, S, S, 3); raises where any of them fails."""
        import nvidia.dali.experimental.dynamic as ndd
        from nvidia.dali.types import INTERP_LINEAR

        files = [np.frombuffer(clip.plan.segment.data, np.uint8) for clip in clips]
        frames = [np.array(clip.plan.segment.frames, np.int32) for clip in clips]
        video = ndd.decoders.video(
            _batch(files),
            frames=_batch(frames),
            # Frame numbers past the end would otherwise come out black.
            pad_mode="none",
            device="cpu" if self._stream is None else "gpu",
        ).evaluate()
        for clip, shape in zip(clips, video.shape, strict=True):
            if tuple(shape[1:3]) != (clip.plan.height, clip.plan.width):
                raise ValueError(f"{clip.path}: frames of {tuple(shape)} were not planned for")
        crops = []
        for repeat in range(len(clips[0].boxes)):
            starts, ends = zip(*(self._region(clip, repeat) for clip in clips), strict=True)
            scaled = ndd.resize(
                video,
                roi_start=_batch(starts),
                roi_end=_batch(ends),
                resize_x=float(self.size),
                resize_y=float(self.size),
                interp_type=INTERP_LINEAR,
                antialias=True,
            )
            crops.append(scaled.torch())
        # Copied out of DALI's memory, which torch's streams know nothing of.
        return torch.stack(crops, 1)

    def _region(self, clip: Encoded, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        """Corners of a crop in the decoded frame; a mirrored one runs from right to left."""
        plan = clip.plan
        (top, left), (bottom, right) = region(
            plan.width, plan.height, clip.boxes[repeat], self.size
        )
        if clip.flips[repeat]:
            left, right = right, left
        return np.array([top, left], np.float32), np.array([bottom, right], np.float32)


def _batch(arrays: Iterable[np.ndarray]) -> Any:
    import nvidia.dali.experimental.dynamic as ndd

    return ndd.as_batch([ndd.as_tensor(array) for array in arrays])
