"""Checkpoints of the original VideoMAE, VideoMAE V2 and AdaMAE, pretrained or fine-tuned.

Pretrained files name the encoder ``encoder.*``, fine-tuned ones leave that out. No file says how
many heads, frames or pixels the model has: heads follow from the width as in the published models,
clips have 16 frames of 224 pixels, and ``model.heads=...`` on the command line says otherwise. A
classifier's classes have no names there, only numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError
from tats_fast.config.reading import build_model_config
from tats_fast.interchange.names import (
    ORIGINAL,
    check_names,
    drop,
    first_names,
    from_foreign,
    key_map,
    take_head,
)
from tats_fast.interchange.weights import Weights, check_overrides, check_shapes
from tats_fast.models.layers import NORM_EPS, sincos_positions

CONTAINERS = ("model", "module", "state_dict")
WRAPPERS = ("module.", "model.")
HEADS = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Heads of the published encoders and decoders by their width."""
UNSAID = ("heads", "decoder_heads", "image_size", "num_frames", "attention")
SAMPLER = ("encoder.pos_embed_probs", "encoder.get_token_probs.")
POSITIONS = ("encoder.pos_embed", "pos_embed")


def foreign_weights(
    content: Mapping[str, Any], path: Path, overrides: Mapping[str, Any]
) -> Weights:
    """Weights from what ``torch.load`` gave.

    Args:
        overrides: model fields among ``UNSAID``.

    Raises:
        ConfigError: another layout, missing or unknown tensors (named), learned positions.
    """
    state = unwrap(content, path)
    text = "AdaMAE's sampler was left out: it is another network than ours"
    state, notes = drop(_without_positions(state, path), SAMPLER, text)
    # Pooling models norm the pooled features instead of the tokens: fc_norm in place of norm.
    norm, fc_norm, classifier = (
        any(name.startswith(f"{part}.") for name in state)
        for part in (ORIGINAL.encoder_norm, ORIGINAL.fc_norm, ORIGINAL.classifier)
    )
    pooled = fc_norm or (classifier and not norm)
    head, state, more = take_head(state, ORIGINAL, pooled, path)
    kernel = state.get("encoder.patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 5:
        raise ConfigError(
            f"{path}: not a VideoMAE checkpoint: no 5-D patch_embed.proj.weight among "
            f"{first_names(state)}"
        )
    depth = _count(state, "encoder.blocks")
    decoder_depth = _count(state, "decoder.blocks") or None
    keys = key_map(ORIGINAL, depth, decoder_depth, not pooled)
    check_names(state, keys, path)
    sizes = _sizes(state, depth, decoder_depth, overrides)
    check_overrides(overrides, UNSAID, "given")
    weights = Weights(
        model=build_model_config({**sizes, **overrides}),
        state=from_foreign(state, keys),
        final_norm=not pooled,
        head=head,
        head_norm_eps=NORM_EPS,  # that code gives every norm this one, unlike Transformers
        classes=() if head is None else tuple(map(str, range(head["head.bias"].numel()))),
        source="original VideoMAE layout",
        notes=notes + more,
    )
    return check_shapes(weights, path)


def unwrap(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict in ``content``, without the prefixes of DDP, DeepSpeed and ``torch.compile``,
    and with the encoder under ``encoder.``."""
    containers = (content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping))
    state = next(containers, content)
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{path}: not a VideoMAE checkpoint: {name} is not a tensor")
        # The prefix of compiled modules is also inside: blocks may be compiled one by one.
        plain = str(name).replace("_orig_mod.", "")
        while plain.startswith(WRAPPERS):
            plain = plain.split(".", 1)[1]
        if plain in result:
            raise ConfigError(f"{path}: {plain} appears twice, under different prefixes")
        result[plain] = tensor
    if any(name.startswith("encoder.") for name in result):
        return result
    return {f"encoder.{name}": tensor for name, tensor in result.items()}


def _without_positions(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without a table of fixed positions, which are computed here."""
    tables = {name: state[name] for name in POSITIONS if name in state}
    for name, table in tables.items():
        fixed = table.ndim == 3 and torch.allclose(
            table[0].float(), sincos_positions(*table.shape[1:]), atol=1e-3
        )
        if not fixed:
            raise ConfigError(
                f"{path}: {name} holds learned positions; this model has fixed ones only, with "
                "which the weights would compute something else"
            )
    return {name: tensor for name, tensor in state.items() if name not in tables}


def _count(state: Mapping[str, Tensor], blocks: str) -> int:
    pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for name in state if (m := pattern.match(name))), default=-1)


def _sizes(
    state: Mapping[str, Tensor],
    depth: int,
    decoder_depth: int | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Model fields that the tensors' shapes tell; all names are known to be there."""
    width, _, tubelet_size, patch_size, _ = state["encoder.patch_embed.proj.weight"].shape
    sizes = {
        "width": width,
        "depth": depth,
        "heads": _heads("heads", width, overrides),
        "tubelet_size": tubelet_size,
        "patch_size": patch_size,
        "mlp_ratio": mlp_ratio(width, len(state["encoder.blocks.0.mlp.fc1.bias"])),
    }
    if decoder_depth is not None:
        decoder_width = state["mask_token"].shape[-1]
        sizes |= {
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
            "decoder_heads": _heads("decoder_heads", decoder_width, overrides),
        }
    return sizes


def _heads(field: str, width: int, overrides: Mapping[str, Any]) -> int:
    heads = overrides.get(field, HEADS.get(width))
    if heads is None:
        raise ConfigError(
            f"model.{field}: the file does not say how many heads share width {width}; "
            f"add model.{field}=N"
        )
    return heads


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio r with int(width * r) == hidden, whatever rounding does; (1408, 6144) -> 4.3636."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
