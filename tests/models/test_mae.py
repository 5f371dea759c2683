"""The autoencoder equals Hugging Face Transformers' VideoMAE with the same weights and mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from tats_fast import kernels
from tats_fast.config.reading import build_config
from tats_fast.models import MaskedAutoencoder, TokenSplit
from tats_fast.models.layers import space_time_positions
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD, patchify

MODEL = build_config(
    {
        "model": {
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 6,
            "width": 24,
            "depth": 3,
            "heads": 4,
            "decoder_width": 12,
            "decoder_depth": 2,
            "decoder_heads": 3,
        }
    }
).model


def hugging_face_twin(mae: MaskedAutoencoder) -> VideoMAEForPreTraining:
    """Transformers' model holding the same weights, every tensor of it set."""
    c = mae.config
    twin = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=c.image_size,
            patch_size=c.patch_size,
            num_frames=c.num_frames,
            tubelet_size=c.tubelet_size,
            hidden_size=c.width,
            num_hidden_layers=c.depth,
            num_attention_heads=c.heads,
            intermediate_size=int(c.width * c.mlp_ratio),
            decoder_hidden_size=c.decoder_width,
            decoder_num_hidden_layers=c.decoder_depth,
            decoder_num_attention_heads=c.decoder_heads,
            decoder_intermediate_size=int(c.decoder_width * c.mlp_ratio),
            layer_norm_eps=1e-6,
            use_mean_pooling=False,
            norm_pix_loss=True,
        )
    )
    state = {}

    def blocks(ours, prefix):
        for i, block in enumerate(ours):
            root = f"{prefix}.{i}."
            qkv = block.attention.qkv
            for name, weight in zip(("query", "key", "value"), qkv.weight.chunk(3), strict=True):
                state[f"{root}attention.attention.{name}.weight"] = weight
            state[f"{root}attention.attention.query.bias"] = qkv.q_bias
            state[f"{root}attention.attention.value.bias"] = qkv.v_bias
            pairs = {
                "attention.output.dense": block.attention.proj,
                "intermediate.dense": block.mlp.fc1,
                "output.dense": block.mlp.fc2,
                "layernorm_before": block.norm1,
                "layernorm_after": block.norm2,
            }
            for name, module in pairs.items():
                state[f"{root}{name}.weight"] = module.weight
                state[f"{root}{name}.bias"] = module.bias

    blocks(mae.encoder.blocks, "videomae.encoder.layer")
    blocks(mae.decoder, "decoder.decoder_layers")
    conv = "videomae.embeddings.patch_embeddings.projection"
    kernel = mae.encoder.embed.proj.weight.unflatten(
        1, (c.tubelet_size, c.patch_size, c.patch_size, 3)
    )
    state[f"{conv}.weight"] = kernel.permute(0, 4, 1, 2, 3)
    state[f"{conv}.bias"] = mae.encoder.embed.proj.bias
    for theirs, ours in {
        "videomae.layernorm": mae.encoder.norm,
        "decoder.norm": mae.decoder_norm,
        "decoder.head": mae.head,
    }.items():
        state[f"{theirs}.weight"], state[f"{theirs}.bias"] = ours.weight, ours.bias
    state["encoder_to_decoder.weight"] = mae.to_decoder.weight
    state["mask_token"] = mae.mask_token[None, None]
    # Another release names the same tensors differently; map only what differs in that case.
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected, f"our names Transformers does not know: {unexpected}"
    assert not missing, f"weights left at Transformers' own initialisation: {missing}"
    return twin.eval()


def randomize(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.normal_(std=0.2)


@pytest.fixture
def pair():
    mae = MaskedAutoencoder(MODEL)
    randomize(mae)
    clips = torch.randint(0, 256, (2, 6, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((clips / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    order = torch.stack([torch.randperm(MODEL.num_tokens) for _ in range(2)])
    order = torch.cat([order[:, :11].sort().values, order[:, 11:].sort().values], dim=1)
    split = TokenSplit(order=order, count=11, length=MODEL.num_tokens)
    hidden = torch.zeros(2, MODEL.num_tokens, dtype=torch.bool).scatter(1, split.masked, True)
    return mae, hugging_face_twin(mae), clips, pixels, split, hidden


def test_pretraining_forward_equals_transformers(pair):
    mae, twin, clips, pixels, split, hidden = pair
    patches = patchify(clips, MODEL.tubelet_size, MODEL.patch_size)
    with torch.no_grad():
        expected = twin(pixels, bool_masked_pos=hidden)
        prediction = mae(patches, split)
        loss = kernels.masked_mse(prediction, patches, split.masked).mean()
    torch.testing.assert_close(prediction, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)


def test_encoder_equals_transformers(pair):
    mae, twin, clips, pixels, split, hidden = pair
    patches = patchify(clips, MODEL.tubelet_size, MODEL.patch_size)
    order = torch.arange(MODEL.num_tokens).expand(2, -1)
    everything = TokenSplit(order=order, count=MODEL.num_tokens, length=MODEL.num_tokens)
    with torch.no_grad():
        tokens = mae.embed(patches)
        for shown, mask in ((split, hidden), (everything, None)):
            expected = twin.videomae(pixels, bool_masked_pos=mask).last_hidden_state
            torch.testing.assert_close(mae.encode(tokens, shown), expected, rtol=1e-5, atol=1e-5)


def test_visible_order_does_not_matter(pair):
    mae, _, clips, _, split, _ = pair
    patches = patchify(clips, MODEL.tubelet_size, MODEL.patch_size)
    order = torch.cat([split.visible.flip(1), split.masked], dim=1)
    shuffled = TokenSplit(order=order, count=11, length=MODEL.num_tokens)
    with torch.no_grad():
        one = mae(patches, split)
        two = mae(patches, shuffled)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_float_patches_embed_like_uint8():
    mae = MaskedAutoencoder(MODEL)
    patches = torch.randint(0, 256, (1, 4, MODEL.patch_dim), dtype=torch.uint8)
    torch.testing.assert_close(mae.embed(patches), mae.embed(patches / 255), rtol=1e-5, atol=1e-5)


def test_space_time_positions_differ_in_time_only_along_a_tube():
    table = space_time_positions(3, 4, 20)
    assert table.shape == (48, 20)
    frames = table.view(3, 16, 20)
    assert torch.equal(frames[0, :, 8:], frames[2, :, 8:])  # 6 channels each for row and column
    assert not torch.equal(frames[0, :, :8], frames[2, :, :8])
    assert len(torch.unique(table, dim=0)) == 48


def test_tied_queries_attend_to_their_own_kind():
    mae = MaskedAutoencoder(dataclasses.replace(MODEL, query_key_init="tied"))
    qkv = mae.decoder[0].attention.qkv
    x = torch.randn(1, 50, MODEL.decoder_width)
    q, k, _ = qkv(x).unbind(2)
    assert torch.equal(q, k)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    assert (scores.diagonal(dim1=2, dim2=3) > scores.mean(-1)).all()
