"""``train.init_from``: weights that pretraining starts from instead of fresh ones."""

from __future__ import annotations

import logging

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.interchange import Weights, read_weights
from tats_fast.models import MaskedAutoencoder
from tats_fast.models.encoder import PREFIX

LOGGER = logging.getLogger("tats_fast")

ENCODER_FIELDS = ("width", "depth", "heads", "tubelet_size", "patch_size", "positions")
DECODER_FIELDS = ("decoder_width", "decoder_depth", "decoder_heads")


def load_initial(mae: MaskedAutoencoder, path: str, say: bool) -> None:
    """Load what ``path`` holds: the encoder, and the decoder if it has one; the rest stays fresh.

    Args:
        path: whatever ``read_weights`` reads.
        say: log what was left out or stays fresh.

    Raises:
        ConfigError: nothing there, or a model of another size; one line.
    """
    weights = read_weights(path, key="train.init_from")
    _check_model(mae.config, weights, path)
    fresh = mae.load_state_dict(weights.state, strict=False).missing_keys
    # A decoder lacks whole modules; of an encoder only the final norm can be missing.
    parts = sorted({name.split(".")[0] for name in fresh if not name.startswith(PREFIX)})
    parts += sorted({name.rpartition(".")[0] for name in fresh if name.startswith(PREFIX)})
    notes = list(weights.notes)
    if parts:
        notes.append(
            f"{', '.join(parts)} not in it: {'they start' if parts[1:] else 'it starts'} "
            "from fresh weights"
        )
    eps = mae.encoder.norm_eps
    if weights.norm_eps != eps:
        notes.append(f"its norms were trained with epsilon {weights.norm_eps:g}, here {eps:g}")
    if say:
        LOGGER.info("train.init_from=%s: weights of %s", path, weights.source)
        for note in notes:
            LOGGER.info("train.init_from: %s", note)


def _check_model(config: ModelConfig, weights: Weights, path: str) -> None:
    """Heads and positions show in no tensor's shape, so fields are compared, not shapes."""
    names = ENCODER_FIELDS + (DECODER_FIELDS if weights.has_decoder else ())
    for name in names:
        here, there = getattr(config, name), getattr(weights.model, name)
        if here != there:
            raise ConfigError(f"model.{name}={here}: train.init_from={path} has {there}")
    here, there = (int(c.width * c.mlp_ratio) for c in (config, weights.model))
    if here != there:
        ratio = weights.model.mlp_ratio
        raise ConfigError(f"model.mlp_ratio={config.mlp_ratio}: train.init_from={path} has {ratio}")
