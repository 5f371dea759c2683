"""A pretrained encoder with a linear head, for fine-tuning: VideoMAE's fine-tuned model (Tong et
al. 2022, section 4.1 and appendix). Legend: B clips, T frames, N tokens, C width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tats_fast.config import ModelConfig
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.layers import INIT_STD, NORM_EPS, initialize

HEAD_NORM_EPS = 1e-5
"""Epsilon of the norm of the mean. Transformers' VideoMAEForVideoClassification fixes it, unlike
the encoder's, and what is exported shall give the logits that were trained and tested here.
VideoMAE's own code has 1e-6: where features have variance 1, the normed mean then differs by 5e-6
of its value."""
HEAD_SCALE = 0.001
"""On the head's initial weights: the first predictions are then as good as uniform."""


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Stochastic depth per block, rising linearly from 0 at the first to ``drop_path`` at the last
    (Huang et al. 2016, section 3, whose l-th of L layers has l / L).

    0.1 at depth 3 -> [0, 0.05, 0.1]; at depth 1 -> [0].
    """
    return [drop_path * i / max(1, depth - 1) for i in range(depth)]


class VideoClassifier(nn.Module):
    """Blocks over all tokens, mean over tokens, LayerNorm, dropout, Linear.

    ``encoder`` is a ``VideoEncoder`` without its final norm: ``fc_norm`` norms the mean instead.
    ``classes`` has the name of class 0, 1, ...: their numbers, until someone sets them.

    Args:
        num_classes: K.
        device_type: ``cpu`` or ``cuda``, which attention backend to choose.
        drop_path: of the last block, in [0, 1]; see ``drop_path_rates``.
        head_dropout: on the normed mean, in [0, 1].
        norm_eps: of the encoder's LayerNorms, as where the weights come from.
        head_norm_eps: of ``fc_norm``; as where the head comes from, if it comes from anywhere.

    Raises:
        ValueError: a probability out of range, or fewer than one class.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        device_type: str = "cpu",
        *,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        norm_eps: float = NORM_EPS,
        head_norm_eps: float = HEAD_NORM_EPS,
    ) -> None:
        super().__init__()
        for name, value in (("drop_path", drop_path), ("head_dropout", head_dropout)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected a probability, 0 to 1")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: expected at least 1")
        self.encoder = VideoEncoder(config, device_type, final_norm=False, norm_eps=norm_eps)
        initialize(self.encoder)
        rates = drop_path_rates(drop_path, config.depth)
        for block, rate in zip(self.encoder.blocks, rates, strict=True):
            block.set_drop_path(rate)
        self.fc_norm = nn.LayerNorm(config.width, eps=head_norm_eps)
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(config.width, num_classes)
        self.classes = tuple(map(str, range(num_classes)))
        nn.init.trunc_normal_(self.head.weight, std=INIT_STD)
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)
        nn.init.zeros_(self.head.bias)

    def load_encoder(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Take the encoder's parameters from pretraining; fc_norm and head stay as they are.

        A pretrained final norm is left out. It has norms per token, before the mean, where
        fine-tuning norms the mean itself: the two do not commute, so its scale and shift have no
        place here, and ``fc_norm`` starts from one and zero, as in VideoMAE's recipe. A source that
        pooled after that norm therefore gives other features at first than it gave alone.

        Args:
            state: a ``VideoEncoder``'s state dict.

        Returns:
            The encoder's parameters that were left out: those of its final norm, if it has one.

        Raises:
            ValueError: a parameter is missing, unknown or of another shape; one line.
        """
        left_out = tuple(name for name in state if name.startswith("norm."))
        tensors = {name: tensor for name, tensor in state.items() if name not in left_out}
        expected = self.encoder.state_dict()
        for name in sorted(expected.keys() ^ tensors.keys()):
            raise ValueError(f"encoder: {name} is {'missing' if name in expected else 'unknown'}")
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(
                    f"encoder: {name} has shape {tuple(tensor.shape)}, "
                    f"expected {tuple(expected[name].shape)}"
                )
        self.encoder.load_state_dict(tensors)
        return left_out

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, K).

        Args:
            video: (B, 3, T, H, W) float, RGB, normalised with ImageNet's mean and deviation, as
                ``VideoEncoder`` takes it. Not bytes: mixing and erasing come between
                normalisation and model, and their pixels are no bytes.

        Raises:
            ValueError: another shape than the model's.
        """
        pooled = self.encoder(video).mean(dim=1)
        return self.head(self.dropout(self.fc_norm(pooled)))
