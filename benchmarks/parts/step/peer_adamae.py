"""AdaMAE as its authors published it, from a clone that ``ADAMAE_CODE`` names.

    git clone https://github.com/wgcban/adamae && export ADAMAE_CODE=adamae

Its model is theirs; of timm it needs four small functions, which stand below where timm is missing.
The loss is written here from the paper (arXiv 2211.09120), without its code's loop over
clips, and the plain training loop is the other peers'.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from parts.step.peer import Peer
from tats_fast.config import ModelConfig, RunConfig
from tats_fast.kernels import reference
from tats_fast.models.patchify import patchify

FOLDER = "ADAMAE_CODE"
SAMPLING_WEIGHT = 1e-4
"""Of the sampling loss beside the reconstruction loss, as in its training script."""


def adamae(model: ModelConfig, ratio: float) -> nn.Module:
    """Its pretraining model at our sizes.

    Raises:
        ImportError: ``ADAMAE_CODE`` does not name a clone.
    """
    code = _code(Path(os.environ.get(FOLDER, "")))
    return code.PretrainVisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        tubelet_size=model.tubelet_size,
        encoder_embed_dim=model.width,
        encoder_depth=model.depth,
        encoder_num_heads=model.heads,
        decoder_num_classes=3 * model.tubelet_size * model.patch_size**2,
        decoder_embed_dim=model.decoder_width,
        decoder_depth=model.decoder_depth,
        decoder_num_heads=model.decoder_heads,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        mask_ratio=ratio,
    )


class AdaMAE(Peer):
    """The model's own draw of visible tokens, and its two losses."""

    def __init__(self, config: RunConfig, device: torch.device, clips: list[Tensor]) -> None:
        torch.manual_seed(config.seed)
        super().__init__(config, device, clips, adamae(config.model, config.masking.ratio))

    def loss(self, clips: Tensor) -> Tensor:
        """Of the hidden tokens' normalised pixels, and -log p of each hidden token by its error."""
        size = self.config.model
        pixels = self.normalized(clips).permute(0, 4, 1, 2, 3).contiguous()
        predicted, probability, _, hidden = self.model(pixels)
        with torch.no_grad():
            patches = patchify(clips, size.tubelet_size, size.patch_size)
            target = reference.normalized_patches(patches)[hidden]
        batch = len(clips)
        target = target.view(batch, -1, target.shape[-1])
        # The decoder's tokens are the visible ones, then the hidden ones.
        error = (predicted[:, -target.shape[1] :] - target).square().mean(dim=-1)
        log_p = probability.log()[hidden].view(batch, -1)
        return error.mean() - SAMPLING_WEIGHT * (log_p * error.detach()).mean()


def _code(clone: Path) -> ModuleType:
    """Its module with the pretraining model."""
    if not (clone / "models" / "pretrain" / "vit.py").is_file():
        raise ModuleNotFoundError(FOLDER, name=f"a clone of AdaMAE ({FOLDER}=FOLDER)")
    if "timm" not in sys.modules and importlib.util.find_spec("timm") is None:
        _stand_in_for_timm()
    if str(clone.resolve()) not in sys.path:
        sys.path.insert(0, str(clone.resolve()))
    return importlib.import_module("models.pretrain.vit")


def _stand_in_for_timm() -> None:
    """What its model imports of timm, whose current releases need torchvision."""

    def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
        if probability and training:
            raise ValueError("its pretraining drops no paths")
        return x

    def to_2tuple(value: Any) -> tuple[Any, Any]:
        return value, value

    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    layers.drop_path, layers.to_2tuple = drop_path, to_2tuple
    layers.trunc_normal_ = nn.init.trunc_normal_
    registry.register_model = lambda function: function
    for name in ("timm", "timm.models"):
        sys.modules[name] = ModuleType(name)
    sys.modules |= {module.__name__: module for module in (layers, registry)}
