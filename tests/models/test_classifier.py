"""The classifier: its arithmetic, stochastic depth and what it takes from pretraining."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import layer_norm

from tats_fast.models import MaskedAutoencoder
from tats_fast.models.classifier import VideoClassifier, drop_path_rates
from tats_fast.models.layers import Block, SelfAttention, skip_branch

CLASSES = 5


@pytest.fixture
def model(tiny_config):
    def make(depth: int = 2, **options) -> VideoClassifier:
        config = tiny_config(model={"depth": depth}).model
        return VideoClassifier(config, CLASSES, **options)

    return make


@pytest.fixture
def video():
    return torch.randn(3, 3, 8, 32, 32)


def make_block(drop_path: float) -> Block:
    torch.manual_seed(1)
    block = Block(32, 4.0, SelfAttention(32, 2, "sdpa"))
    torch.nn.init.normal_(block.attention.qkv.weight, std=0.2)
    block.set_drop_path(drop_path)
    return block


def test_logits_equal_a_hand_computation(model, video):
    classifier = model(drop_path=0.5, head_dropout=0.5).eval()
    torch.nn.init.normal_(classifier.head.weight)
    torch.nn.init.normal_(classifier.head.bias)
    torch.nn.init.normal_(classifier.fc_norm.weight)
    encoder = classifier.encoder
    # A strided 3D convolution, as VideoMAE embeds: filters laid out (colour, time, height, width).
    kernel = encoder.embed.proj.weight.unflatten(1, (2, 8, 8, 3)).permute(0, 4, 1, 2, 3)
    x = torch.conv3d(video, kernel, encoder.embed.proj.bias, stride=(2, 8, 8))
    x = x.flatten(2).transpose(1, 2) + encoder.positions
    for block in encoder.blocks:
        x = x + block.attention(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    pooled = sum(x[:, n] for n in range(x.shape[1])) / x.shape[1]
    norm = classifier.fc_norm
    normed = layer_norm(pooled, (32,), norm.weight, norm.bias, 1e-5)
    expected = normed @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(video), expected, atol=1e-5, rtol=1e-5)


def test_first_predictions_are_nearly_uniform(model, video):
    classifier = model().eval()
    assert not classifier.head.bias.any()
    # Truncated normal of deviation 0.02, times 0.001; 160 weights.
    assert 1.5e-5 < classifier.head.weight.std() < 2.5e-5
    assert classifier(video).abs().max() < 1e-3


def test_gradients_reach_every_parameter(model, video):
    classifier = model(drop_path=0.0)
    classifier(video).square().sum().backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_drop_path_rises_linearly():
    assert drop_path_rates(0.1, 3) == [0.0, 0.05, 0.1]
    assert drop_path_rates(0.2, 1) == [0.0]


def test_blocks_have_the_rates(model):
    blocks = model(depth=3, drop_path=0.2).encoder.blocks
    assert [block.keeps.item() for block in blocks] == pytest.approx([1.0, 0.9, 0.8])
    assert [block.drops for block in blocks] == [False, True, True]


def test_blocks_of_other_rates_share_their_graphs(model):
    """Of 12 or 40 blocks each would otherwise be compiled for itself."""
    blocks, counter = model(depth=5, drop_path=0.4).train().encoder.blocks, CompileCounter()
    torch._dynamo.reset()
    for block in blocks:
        block.compile(backend=counter, dynamic=False)
        block(torch.randn(3, 7, 32))
    assert counter.frame_count == 2  # the first drops nothing


@pytest.mark.parametrize("recompute", [False, True])
def test_block_without_drop_path_is_bit_identical(recompute):
    """Pretraining: the plain residual sums, and no generator touched."""
    block = make_block(0.0).train()
    block.recompute = recompute
    x = torch.randn(3, 7, 32, requires_grad=True)
    state = torch.get_rng_state()
    out = block(x)
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    middle = x + block.attention(block.norm1(x))
    assert torch.equal(out, middle + block.mlp(block.norm2(middle)))
    assert not Block.drops


def test_certain_drop_path_leaves_the_input_alone_in_training_only():
    block = make_block(1.0)
    x = torch.randn(3, 7, 32)
    assert torch.equal(block.train()(x), x)
    assert torch.equal(block.eval()(x), make_block(0.0)(x))


def test_skip_branch_is_per_clip_and_keeps_the_expectation():
    kept = skip_branch(torch.ones(20_000, 2, 3), torch.tensor(0.8))
    assert (kept == kept[:, :1, :1]).all()
    assert kept.unique().tolist() == pytest.approx([0.0, 1.25])
    # The mean has deviation sqrt(0.25 / 20000) = 0.0035; 5 of them.
    assert abs(kept.mean().item() - 1) < 0.018


def test_recomputing_draws_the_same_branches():
    x = torch.randn(6, 7, 32)
    gradients = []
    for recompute in (False, True):
        block = make_block(0.5).train()
        block.recompute = recompute
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        block(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_takes_the_encoder_of_pretraining(model, tiny_config):
    mae = MaskedAutoencoder(tiny_config().model)
    classifier = model()
    left_out = classifier.load_encoder(mae.encoder.state_dict())
    assert sorted(left_out) == ["norm.bias", "norm.weight"]
    for name, tensor in classifier.encoder.state_dict().items():
        assert torch.equal(tensor, mae.encoder.state_dict()[name]), name
    assert classifier.load_encoder(classifier.encoder.state_dict()) == ()


def test_weights_that_do_not_fit(model):
    classifier = model()
    state = classifier.encoder.state_dict()
    name = "embed.proj.bias"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        classifier.load_encoder({key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=r"blocks\.7\.norm1\.bias is unknown"):
        classifier.load_encoder({**state, "blocks.7.norm1.bias": torch.zeros(32)})
    with pytest.raises(ValueError, match=r"has shape \(3,\), expected \(32,\)"):
        classifier.load_encoder({**state, name: torch.zeros(3)})


def test_classes_are_numbers_until_named(model):
    assert model().classes == ("0", "1", "2", "3", "4")


def test_epsilons_of_the_head_and_the_encoder_are_separate(model):
    """Transformers fixes the head's; the encoder's is that of pretraining."""
    classifier = model(norm_eps=1e-12)
    assert classifier.fc_norm.eps == 1e-5
    assert {block.norm1.eps for block in classifier.encoder.blocks} == {1e-12}
    assert model(head_norm_eps=1e-6).fc_norm.eps == 1e-6


@pytest.mark.parametrize("options", [{"drop_path": 1.5}, {"head_dropout": -0.1}])
def test_probabilities_are_checked(model, options):
    with pytest.raises(ValueError, match="expected a probability"):
        model(**options)
