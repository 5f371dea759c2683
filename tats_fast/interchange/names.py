"""Parameter names here and elsewhere, and the few tensors whose shape differs. Pure functions.

| here | Transformers | original VideoMAE, VideoMAE V2, AdaMAE |
|---|---|---|
| ``qkv.weight`` (3C, C) | query, key, value: (C, C) each | ``attn.qkv.weight`` (3C, C) |
| ``qkv.q_bias``, ``qkv.v_bias`` | the same; in release 5 query.bias, value.bias | the same |
| ``encoder.embed.proj.weight`` (C, D) | Conv3d (C, 3, t, p, p) | Conv3d (C, 3, t, p, p) |
| ``mask_token`` (C) | (1, 1, C) | (1, 1, C) |

There is no key bias anywhere: the softmax would not see it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tats_fast.config import ConfigError

PATCH_WEIGHT = "encoder.embed.proj.weight"
MASK_TOKEN = "mask_token"
KeyMap = dict[str, tuple[str, ...]]
"""Our name -> their names; several tensors are stacked along their first axis."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How another code names the parts of the model."""

    embed: str
    """Patch embedding (a Conv3d)."""
    encoder: str
    """List of encoder blocks, before the block's number."""
    encoder_norm: str
    """LayerNorm after the last encoder block."""
    decoder: str
    """List of decoder blocks."""
    fc_norm: str
    """LayerNorm of a classifier, on the mean over the tokens."""
    classifier: str
    """Linear layer of a classifier."""
    block: Mapping[str, str]
    """Inside a block, modules with weight and bias: our name -> theirs."""
    attention: Mapping[str, tuple[str, ...]]
    """Inside a block, tensors of ``attention.qkv``: our name -> theirs."""


HUGGING_FACE = Layout(
    embed="videomae.embeddings.patch_embeddings.projection",
    encoder="videomae.encoder.layer",
    encoder_norm="videomae.layernorm",
    decoder="decoder.decoder_layers",
    fc_norm="fc_norm",
    classifier="classifier",
    block={
        "norm1": "layernorm_before",
        "attention.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    attention={
        "weight": tuple(f"attention.attention.{n}.weight" for n in ("query", "key", "value")),
        "q_bias": ("attention.attention.q_bias",),
        "v_bias": ("attention.attention.v_bias",),
    },
)
ORIGINAL = Layout(
    embed="encoder.patch_embed.proj",
    encoder="encoder.blocks",
    encoder_norm="encoder.norm",
    decoder="decoder.blocks",
    fc_norm="encoder.fc_norm",
    classifier="encoder.head",
    block={
        "norm1": "norm1",
        "attention.proj": "attn.proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    attention={
        "weight": ("attn.qkv.weight",),
        "q_bias": ("attn.q_bias",),
        "v_bias": ("attn.v_bias",),
    },
)


def key_map(layout: Layout, depth: int, decoder_depth: int | None, final_norm: bool) -> KeyMap:
    """Every parameter of a model with ``depth`` encoder blocks.

    Args:
        decoder_depth: None leaves the decoder and what belongs to it out.
        final_norm: whether a LayerNorm follows the last encoder block.
    """
    keys = _module("encoder.embed.proj", layout.embed)

    def blocks(ours: str, theirs: str, count: int) -> None:
        for i in range(count):
            for a, b in layout.block.items():
                keys.update(_module(f"{ours}.{i}.{a}", f"{theirs}.{i}.{b}"))
            for a, parts in layout.attention.items():
                names = tuple(f"{theirs}.{i}.{part}" for part in parts)
                keys[f"{ours}.{i}.attention.qkv.{a}"] = names

    blocks("encoder.blocks", layout.encoder, depth)
    if final_norm:
        keys |= _module("encoder.norm", layout.encoder_norm)
    if decoder_depth is not None:
        keys["to_decoder.weight"] = ("encoder_to_decoder.weight",)
        keys[MASK_TOKEN] = ("mask_token",)
        blocks("decoder", layout.decoder, decoder_depth)
        keys |= _module("decoder_norm", "decoder.norm") | _module("head", "decoder.head")
    return keys


def head_map(layout: Layout) -> KeyMap:
    """A classifier's norm and linear layer, which stand apart: ``head`` is also a decoder's."""
    return _module("fc_norm", layout.fc_norm) | _module("head", layout.classifier)


def _module(ours: str, theirs: str) -> KeyMap:
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in ("weight", "bias")}


def to_foreign(
    state: Mapping[str, Tensor], keys: KeyMap, tubelet_size: int, patch_size: int
) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes; contiguous copies."""
    result = {}
    for ours, theirs in keys.items():
        tensor = state[ours]
        if ours == PATCH_WEIGHT:
            kernel = tensor.unflatten(1, (tubelet_size, patch_size, patch_size, 3))
            tensor = kernel.permute(0, 4, 1, 2, 3)
        elif ours == MASK_TOKEN:
            tensor = tensor[None, None]
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            result[name] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
    return result


def from_foreign(state: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes; fp32."""
    result = {}
    for ours, theirs in keys.items():
        tensor = torch.cat([state[name].float() for name in theirs])
        if ours == PATCH_WEIGHT:
            tensor = tensor.permute(0, 2, 3, 4, 1).flatten(1)
        elif ours == MASK_TOKEN:
            tensor = tensor.flatten()
        result[ours] = tensor.contiguous()
    return result


def check_names(state: Collection[str], keys: KeyMap, where: object) -> None:
    """Refuse a checkpoint that lacks a parameter or holds one that has no place here.

    Raises:
        ConfigError: one line with the first names and how many there are.
    """
    expected = {name for theirs in keys.values() for name in theirs}
    problems = {"lacks": expected - set(state), "holds the unknown": set(state) - expected}
    text = " and ".join(f"{word} {first_names(names)}" for word, names in problems.items() if names)
    if text:
        raise ConfigError(f"{where}: not a VideoMAE checkpoint: it {text}")


def take_head(
    state: Mapping[str, Tensor], layout: Layout, pooled: bool, where: object
) -> tuple[dict[str, Tensor] | None, dict[str, Tensor], tuple[str, ...]]:
    """A classifier's head under our names (None: there is none), the other tensors, and a note
    where something was left out.

    Args:
        pooled: whether the classifier reads the mean of the tokens, as ours does.

    Raises:
        ConfigError: a part of the head is missing, or unknown.
    """
    keys = head_map(layout)
    prefixes = (f"{layout.fc_norm}.", f"{layout.classifier}.")
    if not pooled:
        text = "the classifier was left out: it reads the first token alone"
        return None, *drop(state, prefixes, text)
    if not any(name.startswith(prefixes[1]) for name in state):
        return None, *drop(state, prefixes, "a norm was left out: no classifier follows it")
    rest, _ = drop(state, prefixes, "")
    head = {name: tensor for name, tensor in state.items() if name not in rest}
    check_names(head, keys, where)
    return from_foreign(head, keys), rest, ()


def drop(
    state: Mapping[str, Tensor], prefixes: Iterable[str], text: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors whose names do not start so, and ``text`` as a note if there were others."""
    names = [name for name in state if name.startswith(tuple(prefixes))]
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    return rest, ((f"{text} ({first_names(names)})",) if names else ())


def first_names(names: Collection[str], count: int = 3) -> str:
    """``a, b, c and 5 more (8 tensors)``: a long set of names in short."""
    shown = sorted(names)[:count]
    more = f" and {len(names) - count} more ({len(names)} tensors)" if len(names) > count else ""
    return ", ".join(shown) + more
