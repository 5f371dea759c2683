"""Folders of Transformers' VideoMAE, without Transformers: ``config.json`` and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError, ModelConfig
from tats_fast.config.reading import build_model_config
from tats_fast.config.sampling import Sampling
from tats_fast.data.files import whole_folder
from tats_fast.interchange.foreign import mlp_ratio
from tats_fast.interchange.model_card import model_card
from tats_fast.interchange.names import (
    HUGGING_FACE,
    check_names,
    drop,
    from_foreign,
    head_map,
    key_map,
    take_head,
    to_foreign,
)
from tats_fast.interchange.weights import Weights, check_shapes
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.weights_file import read_state, write_tensors

CONFIG_JSON = "config.json"  # in every folder that save_pretrained writes
SAFETENSORS = "model.safetensors"
# What Transformers takes for a field that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "num_frames": 16,
    "tubelet_size": 2,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,  # release 5 calls it qv_bias and understands both
    "use_mean_pooling": True,
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 1536,
    "norm_pix_loss": True,
}
# Model fields here -> there.
_SIZES = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
_CLIP = ("image_size", "patch_size", "num_frames", "tubelet_size")
ENCODER_FIELDS = _SIZES | {name: name for name in _CLIP}
DECODER_FIELDS = {f"decoder_{ours}": f"decoder_{theirs}" for ours, theirs in _SIZES.items()}
# Release 4 knows the first name alone. Early releases 5 know the second alone and start from zeros
# where they find the first (transformers pull request 48675); later ones know both.
BIAS_NAMES = {
    "attention.attention.q_bias": "attention.attention.query.bias",
    "attention.attention.v_bias": "attention.attention.value.bias",
}
# Of early releases 5. It adds one number to all logits of a query, which no softmax sees.
KEY_BIAS = "attention.attention.key.bias"
SAMPLING = "frame_sampling"
"""Of ``config.json``, a field of ours: ``stride`` or ``fps`` of the training's clips."""
DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")


def read_hugging_face(folder: Path) -> Weights:
    """Weights of ``VideoMAEModel``, ``...ForPreTraining`` or ``...ForVideoClassification``.

    Raises:
        ConfigError: another model type, a variant that ours cannot express, missing or unknown
            tensors (named).
    """
    config = _read_config(folder / CONFIG_JSON)
    state = _read_state(folder)
    final_norm = not config["use_mean_pooling"]
    head, state, notes = take_head(state, HUGGING_FACE, not final_norm, folder)
    # Without a norm before it, the decoder reads other numbers than ours does.
    if not final_norm:
        text = "the decoder was left out: it reads tokens before any norm (use_mean_pooling)"
        state, more = drop(state, DECODER, text)
        notes += more
    decoder = any(name.startswith(DECODER) for name in state)
    if decoder and not config["norm_pix_loss"]:
        notes += (
            "its decoder predicts raw pixels (norm_pix_loss false); training here starts it "
            "on normalised patches",
        )
    depth = config["num_hidden_layers"]
    decoder_depth = config["decoder_num_hidden_layers"] if decoder else None
    whole = key_map(HUGGING_FACE, depth, decoder_depth, final_norm)
    keys = {k: v for k, v in whole.items() if config["qkv_bias"] or not k.endswith("_bias")}
    check_names(state, keys, folder)
    ours = from_foreign(state, keys)
    for name in whole.keys() - keys:
        # Trained without these biases, which is to say with zeros.
        projection = ours[f"{name.rpartition('.')[0]}.weight"]
        ours[name] = projection.new_zeros(len(projection) // 3)
    weights = Weights(
        model=_model_config(config, decoder, folder),
        state=ours,
        final_norm=final_norm,
        norm_eps=float(config["layer_norm_eps"]),
        head=head,
        classes=() if head is None else _class_names(config, folder),
        source="Transformers",
        sampling=_sampling(config, folder),
        notes=notes,
    )
    return check_shapes(weights, folder)


def hugging_face_config(weights: Weights) -> dict[str, Any]:
    """``config.json``, with every field that matters written out: defaults differ from ours."""
    model = weights.model
    kind = "VideoMAEForPreTraining" if weights.has_decoder else "VideoMAEModel"
    labels = {}
    if weights.head is not None:
        kind = "VideoMAEForVideoClassification"
        labels["id2label"] = {str(i): name for i, name in enumerate(weights.classes)}
        labels["label2id"] = {name: i for i, name in enumerate(weights.classes)}
    fields = ENCODER_FIELDS | DECODER_FIELDS
    return {
        "architectures": [kind],
        "model_type": "videomae",
        **DEFAULTS,
        **{theirs: getattr(model, ours) for ours, theirs in fields.items()},
        "intermediate_size": int(model.width * model.mlp_ratio),
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
        "layer_norm_eps": weights.norm_eps,
        "use_mean_pooling": not weights.final_norm,
        "torch_dtype": "float32",
        SAMPLING: {"stride": weights.stride, "fps": weights.fps},
        **labels,
    }


def image_processor_config(image_size: int) -> dict[str, Any]:
    """``preprocessor_config.json``: short side to the model's size, centre crop, ImageNet's mean
    and deviation (Transformers' own default for VideoMAE is 0.5)."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def export_hugging_face(weights: Weights, out: Path) -> Path:
    """Write a folder for Transformers' ``from_pretrained`` with a model card: all of it or nothing.

    Raises:
        ConfigError: ``out`` is there and not empty, or Transformers' model has no such positions.
    """
    model = weights.model
    if model.positions != "flat":
        raise ConfigError(
            f"model.positions={model.positions}: VideoMAE in Transformers has flat positions only; "
            "train with model.positions=flat to export there"
        )
    decoder_depth = model.decoder_depth if weights.has_decoder else None
    keys = key_map(HUGGING_FACE, model.depth, decoder_depth, weights.final_norm)
    sizes = (model.tubelet_size, model.patch_size)
    tensors = to_foreign(weights.state, keys, *sizes)
    if weights.head is not None:
        tensors |= to_foreign(weights.head, head_map(HUGGING_FACE), *sizes)
    for old, new in BIAS_NAMES.items():
        biases = {name: tensor for name, tensor in tensors.items() if old in name}
        tensors |= {name.replace(old, new): tensor for name, tensor in biases.items()}
    with whole_folder(out) as folder:
        write_tensors(tensors, folder / SAFETENSORS)
        for name, content in (
            (CONFIG_JSON, hugging_face_config(weights)),
            ("preprocessor_config.json", image_processor_config(model.image_size)),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(weights))
    return out


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{path}: not readable as JSON") from None
    kind = config.get("model_type") if isinstance(config, Mapping) else None
    if kind != "videomae":
        raise ConfigError(f"{path}: model_type={kind}; expected videomae")
    if "qv_bias" in config:  # the newer name of the same field
        config = {"qkv_bias": config["qv_bias"], **config}
    config = {**DEFAULTS, **config}
    for key in ("image_size", "patch_size"):
        sides = config[key] if isinstance(config[key], list) else [config[key]]
        if len(set(sides)) != 1:
            raise ConfigError(f"{path}: {key}={config[key]}; only squares are possible here")
        config[key] = sides[0]
    for key in ("num_channels", "hidden_act"):
        if config[key] != DEFAULTS[key]:
            raise ConfigError(f"{path}: {key}={config[key]}; only {DEFAULTS[key]} is possible here")
    return config


def _sampling(config: Mapping[str, Any], where: Path) -> Sampling:
    """What our own exports say of the training's frames."""
    try:
        return Sampling(**config.get(SAMPLING) or {})
    except (TypeError, ConfigError):
        raise ConfigError(
            f"{where / CONFIG_JSON}: {SAMPLING} must be a stride or an fps, both positive"
        ) from None


def _class_names(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """Names by id; without any, Transformers' own for as many labels as ``config.json`` says."""
    names = config.get("id2label")
    if names is None:
        names = {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    ids = [str(i) for i in range(len(names))] if isinstance(names, Mapping) else []
    if not ids or names.keys() != set(ids):
        raise ConfigError(
            f"{where / CONFIG_JSON}: id2label must give the names of class 0, 1, ... without a gap"
        )
    return tuple(str(names[i]) for i in ids)


def _model_config(config: Mapping[str, Any], decoder: bool, where: Path) -> ModelConfig:
    ratio = mlp_ratio(config["hidden_size"], config["intermediate_size"])
    fields = ENCODER_FIELDS | (DECODER_FIELDS if decoder else {})
    if decoder:
        there = config["decoder_intermediate_size"]
        if int(config["decoder_hidden_size"] * ratio) != there:
            raise ConfigError(
                f"{where}: decoder_intermediate_size={there}; here encoder and decoder share one "
                f"mlp_ratio ({ratio:g})"
            )
    tree = {ours: config[theirs] for ours, theirs in fields.items()}
    return build_model_config({**tree, "mlp_ratio": ratio})


def _read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors, named as in ``HUGGING_FACE``: with the base model's prefix, biases as release 4
    has them and none of keys."""
    files = sorted(folder.glob("model*.safetensors"))  # large models come in several
    if not files:
        raise ConfigError(f"{folder}: no {SAFETENSORS} in it")
    state = {name: tensor for file in files for name, tensor in read_state(file).items()}
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(KEY_BIAS):
            continue
        if name.startswith(("embeddings.", "encoder.", "layernorm.")):
            name = f"videomae.{name}"
        for old, new in BIAS_NAMES.items():
            name = name.replace(new, old)
        if name in result and not torch.equal(result[name], tensor):
            raise ConfigError(f"{folder}: {name} appears under two names with different values")
        result[name] = tensor
    return result
