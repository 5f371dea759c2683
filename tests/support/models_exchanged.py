"""Models exchanged with Transformers and with the original code, and how outputs compare."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
)

from tats_fast import kernels
from tats_fast.config import save_config
from tats_fast.config.reading import build_config
from tats_fast.interchange import Weights, read_weights
from tats_fast.models import MaskedAutoencoder, TokenSplit
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD, patchify
from tats_fast.weights_file import write_state

# One clip per size: plain; three patches a side, tubelet 1; wide tubelet, odd MLP; one block each.
SIZES = {
    "plain": {"image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2},
    "tubelet1": {"image_size": 48, "patch_size": 16, "num_frames": 3, "tubelet_size": 1},
    "odd_mlp": {"image_size": 24, "patch_size": 4, "num_frames": 6, "tubelet_size": 3},
    "shallow": {"image_size": 16, "patch_size": 8, "num_frames": 8, "tubelet_size": 2},
}


SHAPES = {
    "plain": {"width": 24, "depth": 2, "heads": 4, "mlp_ratio": 4.0},
    "tubelet1": {"width": 36, "depth": 2, "heads": 3, "mlp_ratio": 2.0},
    "odd_mlp": {"width": 44, "depth": 2, "heads": 4, "mlp_ratio": 48 / 11},
    "shallow": {"width": 16, "depth": 1, "heads": 1, "mlp_ratio": 1.5},
}


DECODERS = {
    "plain": {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3},
    "tubelet1": {"decoder_width": 24, "decoder_depth": 3, "decoder_heads": 2},
    "odd_mlp": {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2},
    "shallow": {"decoder_width": 20, "decoder_depth": 1, "decoder_heads": 1},
}


def model_tree(size: str) -> dict:
    return {**SIZES[size], **SHAPES[size], **DECODERS[size]}


def transformers_config(size: str, **others) -> VideoMAEConfig:
    shape, decoder = SHAPES[size], DECODERS[size]
    fields = {
        **SIZES[size],
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": int(shape["width"] * shape["mlp_ratio"]),
        "decoder_hidden_size": decoder["decoder_width"],
        "decoder_num_hidden_layers": decoder["decoder_depth"],
        "decoder_num_attention_heads": decoder["decoder_heads"],
        "decoder_intermediate_size": int(decoder["decoder_width"] * shape["mlp_ratio"]),
        "use_mean_pooling": False,
        "layer_norm_eps": 1e-6,
    }
    return VideoMAEConfig(**{**fields, **others})


def randomize(module: nn.Module, std: float = 0.2) -> nn.Module:
    """Every parameter random, biases and norms included: what is not copied shows."""
    for parameter in module.parameters():
        parameter.data.normal_(std=std)
    return module.eval()


def random_clip(tree: dict, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes (B, T, S, S, 3) and the normalised video (B, 3, T, S, S)."""
    side = tree["image_size"]
    clips = torch.randint(0, 256, (batch, tree["num_frames"], side, side, 3), dtype=torch.uint8)
    video = (clips / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return clips, video.permute(0, 4, 1, 2, 3)


def frames_first(video: torch.Tensor) -> torch.Tensor:
    return video.transpose(1, 2)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= 1e-5


def write_run(folder, mae: MaskedAutoencoder, step: int = 3) -> None:
    """A run with one checkpoint, as pretraining leaves it."""
    checkpoint = folder / "checkpoints" / f"step_{step:06d}"
    checkpoint.mkdir(parents=True)
    config = build_config({"masking": {"strategy": "random"}})
    save_config(dataclasses.replace(config, model=mae.config), checkpoint / "config.yaml")
    state = {"mae": mae.state_dict(), "sampler": None}
    write_state(state, checkpoint / "model.safetensors")


def read_run(mae: MaskedAutoencoder, folder) -> Weights:
    write_run(folder, mae)
    return read_weights(folder)


def pretraining_outputs(mae: MaskedAutoencoder, clips: torch.Tensor):
    """Prediction and loss of ours for a random mask, and that mask (True = masked)."""
    config = mae.config
    patches = patchify(clips, config.tubelet_size, config.patch_size)
    count = config.num_tokens // 3
    order = torch.stack([torch.randperm(config.num_tokens) for _ in clips])
    order = torch.cat([order[:, :count].sort().values, order[:, count:].sort().values], dim=1)
    split = TokenSplit(order=order, count=count, length=config.num_tokens)
    with torch.no_grad():
        prediction = mae(patches, split)
    loss = kernels.masked_mse(prediction, patches, split.masked).mean()
    hidden = torch.zeros(len(clips), config.num_tokens, dtype=torch.bool)
    return prediction, loss, hidden.scatter(1, split.masked, True)


def compare_pretraining(mae: MaskedAutoencoder, theirs: VideoMAEForPreTraining) -> None:
    clips, video = random_clip(model_fields(mae))
    prediction, loss, hidden = pretraining_outputs(mae, clips)
    with torch.no_grad():
        expected = theirs(frames_first(video), bool_masked_pos=hidden)
    assert_close(prediction, expected.logits)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)


def edited(folder, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


GIVEN = {"heads": 4, "decoder_heads": 3, "image_size": 32, "num_frames": 4}


RENAMED = (
    ("videomae.encoder.layer.", "encoder.blocks."),
    ("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj"),
    ("videomae.layernorm", "encoder.norm"),
    ("decoder.decoder_layers.", "decoder.blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("attention.attention.query.bias", "attn.q_bias"),
    ("attention.attention.value.bias", "attn.v_bias"),
)


def original_state(model) -> dict[str, torch.Tensor]:
    """A Transformers model's tensors under the original names."""
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, original in RENAMED:
            name = name.replace(theirs, original)
        state[name] = tensor.clone()
    for name in [n for n in state if n.endswith("attention.attention.query.weight")]:
        root = name.removesuffix("attention.attention.query.weight")
        parts = [
            state.pop(f"{root}attention.attention.{n}.weight") for n in ("query", "key", "value")
        ]
        state[f"{root}attn.qkv.weight"] = torch.cat(parts)
    return state


def original_classifier_state(model) -> dict[str, torch.Tensor]:
    """The same for a classifier; fine-tuned files have no ``encoder.`` before the names."""
    state = {k.removeprefix("encoder."): v for k, v in original_state(model).items()}
    return {k.replace("classifier", "head"): v for k, v in state.items()}


def model_fields(mae: MaskedAutoencoder) -> dict:
    return dataclasses.asdict(mae.config)


def pil_processor(folder: Path):
    """Transformers' image processor that resizes with PIL; early releases have no other."""
    try:
        from transformers.models.videomae import image_processing_pil_videomae as module
    except ImportError:
        from transformers import VideoMAEImageProcessor

        return VideoMAEImageProcessor.from_pretrained(folder)
    return module.VideoMAEImageProcessorPil.from_pretrained(folder)
