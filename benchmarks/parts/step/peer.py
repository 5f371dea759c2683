"""What one would use instead, in a plain training loop: VideoMAE of Hugging Face Transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from parts.peak_memory import peak_mb
from tats_fast.config import ModelConfig, RunConfig
from tats_fast.engine.optim import LR_REFERENCE_BATCH, make_optimizer, set_lr
from tats_fast.engine.precision import autocast, wants_bf16
from tats_fast.interchange.huggingface import hugging_face_config
from tats_fast.interchange.weights import Weights
from tats_fast.masking import visible_tokens
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD


def videomae(model: ModelConfig) -> nn.Module:
    """Transformers' model of the same size, with SDPA attention and normalised pixels as target.

    Raises:
        ImportError: Transformers is not installed.
    """
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    config = VideoMAEConfig.from_dict(hugging_face_config(Weights(model=model, state={})))
    return VideoMAEForPreTraining._from_config(config, attn_implementation="sdpa")


class Peer(ABC):
    """A path like ``Contender``: the same clips, size, number of visible tokens, precision and
    optimizer. Its losses cannot be compared with ours."""

    compared = False

    def __init__(
        self, config: RunConfig, device: torch.device, clips: list[Tensor], model: nn.Module
    ) -> None:
        self.config, self.clips = config, clips
        self.bf16 = wants_bf16(config.train.precision, device)
        self.device = device
        self.model = model.to(device).train()
        self.optimizer = make_optimizer(self.model, config.optim)
        self.skipped: list[Tensor] = []
        self.first: dict[str, float] = {}
        colours = (IMAGENET_MEAN, IMAGENET_STD)
        self._mean, self._std = (torch.tensor(colour, device=device) for colour in colours)

    @abstractmethod
    def loss(self, clips: Tensor) -> Tensor:
        """Of uint8 clips (B, T, S, S, 3): a scalar with a gradient."""

    def step(self) -> dict[str, Tensor]:
        """One update; the loss stays on the device."""
        losses = []
        for clips in self.clips:
            with autocast(self.device, self.bf16):
                loss = self.loss(clips) / len(self.clips)
            loss.backward()
            losses.append(loss.detach())
        set_lr(
            self.optimizer,
            self.config.optim.base_lr * self.config.train.batch_size / LR_REFERENCE_BATCH,
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(losses).sum()
        self.skipped.append((~loss.isfinite()).float())
        return {"loss_recon": loss}

    def normalized(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, S, S, 3) -> fp32, each channel normalised as ImageNet's."""
        return (clips / 255 - self._mean) / self._std

    def take_first_step(self) -> None:
        """Fill in ``first``."""
        self.first = {"loss_recon": float(self.step()["loss_recon"])}

    def settings(self) -> dict[str, Any]:
        """What distinguishes the path."""
        return {
            "attention": self.config.model.attention,
            "kernels": {"model": type(self.model).__module__.partition(".")[0]},
            "compile": self.config.train.compile,
            "masking": self.config.masking.strategy,
        }

    def stages(self) -> dict[str, float]:
        """None of its stages is one of ours."""
        return {}

    def peak_memory_mb(self) -> float | None:
        """Of one step in MiB, its own state included."""
        return peak_mb(self.step, [self.model], [self.optimizer], self.device)

    def planned_memory_mb(self) -> float | None:
        """None: its memory is not ours to plan."""
        return None


class VideoMAE(Peer):
    """Transformers' model under a uniformly random mask."""

    def __init__(self, config: RunConfig, device: torch.device, clips: list[Tensor]) -> None:
        torch.manual_seed(config.seed)
        super().__init__(config, device, clips, videomae(config.model))
        if config.train.compile:
            # Layer by layer, like ours (regional compilation): whole, it was still
            # compiling after three minutes on an H100's host.
            for layer in (*self.model.videomae.encoder.layer, *self.model.decoder.decoder_layers):
                layer.compile(dynamic=False)
        visible = visible_tokens("random", config.model, config.masking.ratio)
        self._hidden = config.model.num_tokens - visible
        self._generator = torch.Generator(device).manual_seed(config.seed)

    def loss(self, clips: Tensor) -> Tensor:
        """The model's own."""
        pixels = self.normalized(clips).permute(0, 1, 4, 2, 3).contiguous()
        return self.model(pixels, bool_masked_pos=self._mask(len(clips))).loss

    def _mask(self, batch: int) -> Tensor:
        """(B, N) bool, True where hidden, the same number in every clip."""
        shape = batch, self.config.model.num_tokens
        noise = torch.rand(shape, generator=self._generator, device=self.device)
        chosen = noise.topk(self._hidden, dim=1).indices
        mask = torch.zeros(shape, dtype=torch.bool, device=self.device)
        return mask.scatter_(1, chosen, True)
