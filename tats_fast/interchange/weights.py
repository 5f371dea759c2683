"""Weights with what is needed to use them, and the file that ``tats-fast import`` writes.

The file is a checkpoint's ``model.pt`` (``mae``, ``sampler``) with a third entry, ``imported``: the
model's configuration and what our checkpoints need not say. Beside a ``config.yaml`` it is a
checkpoint folder, which every command reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError, ModelConfig, RunConfig, load_config, save_config
from tats_fast.config.load import build_config
from tats_fast.models.encoder import VideoEncoder, encoder_state
from tats_fast.models.layers import NORM_EPS
from tats_fast.models.load import CONFIG_FILE, MODEL_FILE, STEP_PREFIX
from tats_fast.models.mae import MaskedAutoencoder

RESIZABLE = ("image_size", "num_frames", "attention")
"""Model fields that no weight depends on, because the positions are computed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A model's parameters, named as in ``MaskedAutoencoder``, fp32 on the CPU."""

    model: ModelConfig
    state: dict[str, Tensor]
    """The encoder's parameters, and the decoder's where there is one."""
    final_norm: bool = True
    """False: no LayerNorm after the last encoder block, and none in ``state``."""
    norm_eps: float = NORM_EPS
    """Of the encoder's LayerNorms where the weights come from."""
    source: str = ""
    """Kind of the origin, such as ``Transformers``."""
    notes: tuple[str, ...] = ()
    """What was left out, a sentence each."""
    run: RunConfig | None = None
    """How the weights were trained, if here."""
    step: int | None = None
    """Optimizer steps of the training, if here."""

    @property
    def has_decoder(self) -> bool:
        """Whether this is a whole autoencoder, as pretraining continues from."""
        return "mask_token" in self.state


def run_config(fields: Mapping[str, Any]) -> RunConfig:
    """A run around the ``model`` section ``fields``, checked like a configuration file. It masks
    half of the tokens at random, which needs no sampler and suits models of any size.

    Raises:
        ConfigError: an unknown field or impossible value.
    """
    return build_config({"model": dict(fields), "masking": {"strategy": "random", "ratio": 0.5}})


def resize(weights: Weights, overrides: Mapping[str, Any]) -> Weights:
    """The same weights for another clip size: the fixed positions are computed anew.

    Raises:
        ConfigError: a field that the weights determine.
    """
    for key, value in overrides.items():
        if key not in RESIZABLE:
            raise ConfigError(
                f"model.{key}={value}: the weights determine it; only {', '.join(RESIZABLE)} can "
                "be changed"
            )
    fields = {**dataclasses.asdict(weights.model), **overrides}
    return dataclasses.replace(weights, model=run_config(fields).model)


def check_shapes(weights: Weights, where: object) -> Weights:
    """``weights``, if they fill the model that they claim to be.

    Raises:
        ConfigError: a tensor is missing, unknown or of another shape; one line.
    """
    with torch.device("meta"):
        # Which attention runs does not matter here, and "auto" exists everywhere.
        model = dataclasses.replace(weights.model, attention="auto")
        if weights.has_decoder:
            expected = MaskedAutoencoder(model).state_dict()
        else:
            expected = VideoEncoder(model, final_norm=weights.final_norm).state_dict()
    for name in sorted(expected.keys() ^ weights.state.keys()):
        raise ConfigError(f"{where}: {name} is {'missing' if name in expected else 'unknown'}")
    for name, tensor in weights.state.items():
        if tensor.shape != expected[name].shape:
            raise ConfigError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    return weights


def build_encoder(weights: Weights, device: torch.device | str = "cpu") -> VideoEncoder:
    """The encoder on ``device`` in evaluation mode."""
    device = torch.device(device)
    encoder = VideoEncoder(
        weights.model, device.type, final_norm=weights.final_norm, norm_eps=weights.norm_eps
    )
    encoder.load_state_dict(encoder_state(weights.state))
    return encoder.to(device).eval()


def save_weights(weights: Weights, out: Path) -> Path:
    """Write ``out``: a file if its name ends in ``.pt``, else a checkpoint folder.

    Raises:
        ConfigError: ``out`` exists, or an encoder alone is to become a checkpoint folder.
    """
    if out.exists():
        raise ConfigError(f"--out={out}: exists; choose another name")
    imported = {
        "model": dataclasses.asdict(weights.model),
        "final_norm": weights.final_norm,
        "norm_eps": weights.norm_eps,
        "source": weights.source,
    }
    content = {"mae": weights.state, "sampler": None, "imported": imported}
    if out.suffix == ".pt":
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, out)
        return out
    if not weights.has_decoder:
        raise ConfigError(
            f"--out={out}: there is no decoder for a checkpoint folder; name a file ending in .pt"
        )
    out.mkdir(parents=True)
    save_config(run_config(imported["model"]), out / CONFIG_FILE)
    torch.save(content, out / MODEL_FILE)
    return out


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is a ``model.pt``."""
    return "mae" in content and "sampler" in content


def own_weights(content: Mapping[str, Any], path: Path) -> Weights:
    """Weights from the content of a ``model.pt``.

    Raises:
        ConfigError: the configuration is missing, or does not fit the weights.
    """
    config_file = path.with_name(CONFIG_FILE)
    state = {name: tensor.float() for name, tensor in content["mae"].items()}
    imported = content.get("imported")
    if imported is not None:
        model = run_config(imported["model"]).model
        facts = {key: imported[key] for key in ("final_norm", "norm_eps", "source")}
        weights = Weights(model=model, state=state, **facts)
    elif not config_file.is_file():
        raise ConfigError(f"{path}: {CONFIG_FILE} belongs beside it and is not there")
    else:
        run = load_config(config_file)
        number = path.parent.name.removeprefix(STEP_PREFIX)
        weights = Weights(
            model=run.model,
            state=state,
            source="TATS-Fast",
            run=run,
            step=int(number) if number.isdigit() else None,
        )
    return check_shapes(weights, path)
