"""``train.init_from``: weights that pretraining starts from instead of fresh ones."""

from __future__ import annotations

import logging
from dataclasses import asdict

from tats_fast.config import ConfigError, ModelConfig, RunConfig
from tats_fast.interchange import Weights, read_weights
from tats_fast.models import MaskedAutoencoder, TokenSampler
from tats_fast.models.encoder import PREFIX
from tats_fast.models.layers import NORM_EPS
from tats_fast.models.sampler import resized_positions
from tats_fast.pretrain.teacher import FeatureHead

LOGGER = logging.getLogger("tats_fast")

ENCODER_FIELDS = ("width", "depth", "heads", "tubelet_size", "patch_size", "positions")
DECODER_FIELDS = ("decoder_width", "decoder_depth", "decoder_heads")
SAMPLER_SECTIONS = ("sampler.", "masking.", "ppo.", "teacher.")
"""Of a configuration's ``identity``: what gives a sampler's weights their meaning."""


def load_initial(
    config: RunConfig,
    mae: MaskedAutoencoder,
    sampler: TokenSampler | None,
    feature_head: FeatureHead | None,
    say: bool,
) -> None:
    """Load what ``config.train.init_from`` holds: the encoder, and decoder, sampler and feature
    head where they are those of this run. The others stay fresh; fixed positions are those of this
    run's clips, and the sampler's learned ones are interpolated to them.

    Args:
        say: log in one line what was taken and what was not.

    Raises:
        ConfigError: nothing there, or an encoder of another size; one line.
    """
    path = config.train.init_from
    weights = read_weights(path, key="train.init_from")
    _check_encoder(config.model, weights, path)
    state, problems = weights.state, {"decoder": _decoder_problem(config.model, weights)}
    if problems["decoder"] is not None:
        state = {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if sampler is not None:
        problems["sampler"] = _load_sampler(config, sampler, weights)
    if feature_head is not None:
        fits = problems["decoder"] is None
        problems["feature head"] = _load_feature_head(config, feature_head, weights, fits)
    fresh = mae.load_state_dict(state, strict=False).missing_keys
    if any(name.startswith(PREFIX) for name in fresh):
        problems["norm after the encoder"] = "not in it"
    if say:
        LOGGER.info("train.init_from=%s: %s", path, _in_words(config.model, weights, problems))


def _in_words(config: ModelConfig, weights: Weights, problems: dict[str, str | None]) -> str:
    """What was taken and what was not: of each part why not, or None."""
    taken = ["the encoder", *(f"the {part}" for part, problem in problems.items() if not problem)]
    left = [f"no {part} ({problem})" for part, problem in problems.items() if problem]
    text = "took " + " and ".join(filter(None, [", ".join(taken[:-1]), taken[-1]]))
    text += "".join([", but ", ", ".join(left)] if left else []) + f", of {weights.source}"
    there = weights.model
    if (config.num_frames, config.image_size) != (there.num_frames, there.image_size):
        text += f"; from {there.num_frames} frames of {there.image_size} pixels to "
        text += f"{config.num_frames} of {config.image_size}"
    if weights.norm_eps != NORM_EPS:
        text += f"; its norms had epsilon {weights.norm_eps:g}, here {NORM_EPS:g}"
    return "; ".join([text, *weights.notes])


def _check_encoder(config: ModelConfig, weights: Weights, path: str) -> None:
    """Heads and positions show in no tensor's shape, so fields are compared, not shapes."""
    for name in ENCODER_FIELDS:
        here, there = getattr(config, name), getattr(weights.model, name)
        if here != there:
            raise ConfigError(f"model.{name}={here}: train.init_from={path} has {there}")
    here, there = (int(c.width * c.mlp_ratio) for c in (config, weights.model))
    if here != there:
        ratio = weights.model.mlp_ratio
        raise ConfigError(f"model.mlp_ratio={config.mlp_ratio}: train.init_from={path} has {ratio}")


def _decoder_problem(config: ModelConfig, weights: Weights) -> str | None:
    """Why the decoder starts afresh, if it does."""
    if not weights.has_decoder:
        return "not in it"
    here, there = asdict(config), asdict(weights.model)
    differing = [name for name in DECODER_FIELDS if here[name] != there[name]]
    return ", ".join(f"model.{n} is {there[n]} there, {here[n]} here" for n in differing) or None


def _load_sampler(config: RunConfig, sampler: TokenSampler, weights: Weights) -> str | None:
    """Take over a sampler that was trained to do what this one is, or say why it starts afresh."""
    if weights.sampler is None or not isinstance(weights.run, RunConfig):
        return "not in it"
    here, there = config.identity(), weights.run.identity()
    for key in here:
        if key.startswith(SAMPLER_SECTIONS) and here[key] != there[key]:
            return f"{key} is {there[key]} there, {here[key]} here"
    state = dict(weights.sampler)
    state["positions"] = resized_positions(state["positions"], weights.model, config.model)
    sampler.load_state_dict(state)
    return None


def _load_feature_head(
    config: RunConfig, head: FeatureHead, weights: Weights, decoder_fits: bool
) -> str | None:
    """Take over a head that predicted the same teacher's features, or say why it starts afresh."""
    if weights.feature_head is None:
        return "not in it"
    if not decoder_fits:
        return "it was another decoder's"
    here, there = config.teacher.init_from, weights.run.teacher.init_from
    if here != there:
        return f"teacher.init_from is {there} there, {here} here"
    here, there = (len(state["1.bias"]) for state in (head.state_dict(), weights.feature_head))
    if here != there:
        return f"the teacher's width is {there} there, {here} here"
    head.load_state_dict(weights.feature_head)
    return None
