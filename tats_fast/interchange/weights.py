"""Weights with what is needed to use them, and the files that hold them.

``tats-fast import`` writes the weights of a checkpoint (``mae``, ``sampler``) with two more
entries: ``imported``, the model's configuration and what our checkpoints need not say, and
``head``, a classifier's. Beside a ``config.yaml`` it is a checkpoint folder, which every command
reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tats_fast.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    MaskingConfig,
    ModelConfig,
    RunConfig,
    read_saved,
    save_config,
)
from tats_fast.config.reading import build_model_config
from tats_fast.config.sampling import Sampling
from tats_fast.models.classifier import HEAD_NORM_EPS, VideoClassifier
from tats_fast.models.encoder import PREFIX, VideoEncoder, encoder_state
from tats_fast.models.layers import NORM_EPS
from tats_fast.models.mae import MaskedAutoencoder
from tats_fast.models.restore import EMA
from tats_fast.run_folder import CONFIG_FILE, MODEL_FILE, STEP_PREFIX
from tats_fast.weights_file import write_state

RESIZABLE = ("image_size", "num_frames", "attention")
"""Model fields that no weight depends on, because the positions are computed."""
FINE_TUNED = {"classifier", "model", "classes", "norm_eps"}
"""What the weights of a fine-tuned checkpoint hold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A model's parameters, fp32 on the CPU."""

    model: ModelConfig
    state: dict[str, Tensor]
    """The encoder's parameters, and the decoder's where there is one; names as in
    ``MaskedAutoencoder``."""
    final_norm: bool = True
    """False: no LayerNorm after the last encoder block, and none in ``state``."""
    norm_eps: float = NORM_EPS
    """Of the encoder's LayerNorms where the weights come from."""
    head: dict[str, Tensor] | None = None
    """A classifier's ``fc_norm.*`` and ``head.*``, named as in ``VideoClassifier``. With it there
    is no final norm and no decoder."""
    head_norm_eps: float = HEAD_NORM_EPS
    """Of ``fc_norm`` where the head comes from."""
    classes: tuple[str, ...] = ()
    """Name of class 0, 1, ... of the head."""
    source: str = ""
    """Kind of the origin, such as ``Transformers``."""
    notes: tuple[str, ...] = ()
    """What was left out, a sentence each."""
    run: RunConfig | FinetuneConfig | None = None
    """How the weights were trained, if here and known."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the training took its frames, where an export without ``run`` says so."""
    step: int | None = None
    """Optimizer steps of the training, if here."""
    ema: bool = False
    """Whether ``state`` is the moving average over the training."""
    sampler: dict[str, Tensor] | None = None
    """The token sampler's parameters, where pretraining here left one."""
    feature_head: dict[str, Tensor] | None = None
    """The same of the head that predicts a teacher's features."""

    @property
    def has_decoder(self) -> bool:
        """Whether this is a whole autoencoder, as pretraining continues from."""
        return "mask_token" in self.state

    @property
    def stride(self) -> int | None:
        """Frames between two of a training's clip: how clips should be cut; None = unknown."""
        return (self.sampling if self.run is None else self.run.data).stride

    @property
    def fps(self) -> float | None:
        """The training's frames per second, where it took them by time; otherwise None."""
        return (self.sampling if self.run is None else self.run.data).fps


def resize(weights: Weights, overrides: Mapping[str, Any]) -> Weights:
    """The same weights for another clip size: the fixed positions are computed anew.

    Raises:
        ConfigError: a field that the weights determine.
    """
    check_overrides(overrides, RESIZABLE, "changed")
    fields = {**dataclasses.asdict(weights.model), **overrides}
    return dataclasses.replace(weights, model=build_model_config(fields))


def check_overrides(overrides: Mapping[str, Any], free: Sequence[str], verb: str) -> None:
    """Refuse a model field that is not among the ``free`` ones, which can be ``verb``."""
    for key, value in overrides.items():
        if key not in free:
            raise ConfigError(
                f"model.{key}={value}: the weights determine it; only {', '.join(free)} can be "
                f"{verb}"
            )


def check_shapes(weights: Weights, where: object) -> Weights:
    """``weights``, if they fill the model that they claim to be.

    Raises:
        ConfigError: a tensor is missing, unknown or of another shape; one line.
    """
    count, bias = len(weights.classes), (weights.head or {}).get("head.bias")
    if bias is not None and bias.numel() != count:
        raise ConfigError(
            f"{where}: names {count} classes, but its classifier has {bias.numel()} outputs"
        )
    with torch.device("meta"):
        # Which attention runs does not matter here, and "auto" exists everywhere.
        model = dataclasses.replace(weights.model, attention="auto")
        if weights.head is not None:
            whole = VideoClassifier(model, max(count, 1))
        elif weights.has_decoder:
            whole = MaskedAutoencoder(model)
        else:
            whole = nn.ModuleDict({"encoder": VideoEncoder(model, final_norm=weights.final_norm)})
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    state = {**weights.state, **(weights.head or {})}
    for name in sorted(shapes.keys() ^ state.keys()):
        raise ConfigError(f"{where}: {name} is {'missing' if name in shapes else 'unknown'}")
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        if shape != shapes[name]:
            raise ConfigError(f"{where}: {name} has shape {shape}, expected {shapes[name]}")
    return weights


def build_encoder(weights: Weights, device: torch.device | str = "cpu") -> VideoEncoder:
    """The encoder on ``device`` in evaluation mode."""
    device = torch.device(device)
    encoder = VideoEncoder(
        weights.model, device.type, final_norm=weights.final_norm, norm_eps=weights.norm_eps
    )
    encoder.load_state_dict(encoder_state(weights.state))
    encoder.sampling = {"stride": weights.stride, "fps": weights.fps}
    return encoder.to(device).eval()


def build_classifier(
    weights: Weights, device: torch.device | str = "cpu", where: object = "these weights"
) -> VideoClassifier:
    """The classifier on ``device`` in evaluation mode.

    Args:
        where: what messages call the weights.

    Raises:
        ConfigError: there is no head.
    """
    if weights.head is None:
        reason = "".join(f" ({note})" for note in weights.notes)
        raise ConfigError(f"{where}: an encoder without a classifier; fine-tune it first{reason}")
    device = torch.device(device)
    classifier = VideoClassifier(
        weights.model,
        len(weights.classes),
        device.type,
        norm_eps=weights.norm_eps,
        head_norm_eps=weights.head_norm_eps,
    )
    classifier.classes = weights.classes
    classifier.encoder.sampling = {"stride": weights.stride, "fps": weights.fps}
    classifier.load_state_dict({**weights.state, **weights.head})
    return classifier.to(device).eval()


def save_weights(weights: Weights, out: Path) -> Path:
    """Write ``out``: a file if its name ends in ``.safetensors``, else a checkpoint folder.

    Raises:
        ConfigError: ``out`` exists or ends in ``.pt``, or an encoder alone is to become a
            checkpoint folder.
    """
    if out.exists():
        raise ConfigError(f"out={out}: exists; choose another name")
    kind = Path(MODEL_FILE).suffix
    if out.suffix == ".pt":
        raise ConfigError(f"out={out}: weights are written as safetensors; end the name in {kind}")
    imported = {
        "model": dataclasses.asdict(weights.model),
        "final_norm": weights.final_norm,
        "norm_eps": weights.norm_eps,
        "head_norm_eps": weights.head_norm_eps,
        "classes": list(weights.classes),
        "source": weights.source,
        "sampling": {"stride": weights.stride, "fps": weights.fps},
    }
    content = {"mae": weights.state, "sampler": None, "imported": imported, "head": weights.head}
    if out.suffix == kind:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_state(content, out)
        return out
    if not weights.has_decoder:
        raise ConfigError(
            f"out={out}: there is no decoder for a checkpoint folder; name a file ending in {kind}"
        )
    out.mkdir(parents=True)
    # Whoever trains from here chooses the masks; random ones need no sampler.
    masking = MaskingConfig(strategy="random", ratio=0.5)
    data = DataConfig(stride=weights.stride or None, fps=weights.fps)
    save_config(RunConfig(model=weights.model, masking=masking, data=data), out / CONFIG_FILE)
    write_state(content, out / MODEL_FILE)
    return out


def is_ours(content: Mapping[str, Any]) -> bool:
    """Whether these are weights of ours, of pretraining, an import or fine-tuning."""
    return {"mae", "sampler"} <= content.keys() or content.keys() >= FINE_TUNED


def own_weights(content: Mapping[str, Any], path: Path, ema: bool = False) -> Weights:
    """Weights from the content of a file of ours.

    Args:
        ema: take the moving average of them.

    Raises:
        ConfigError: the configuration is missing, or does not fit the weights; no average there.
    """
    if ema and content.get(EMA) is None:
        raise ConfigError(
            f"{path}: holds no moving average of weights beside them; pretraining keeps one with "
            "train.ema_decay=0.9999"
        )
    config_file = path.with_name(CONFIG_FILE)
    if content.keys() >= FINE_TUNED:
        # It says all that the model needs; config.yaml is for its card.
        tensors = _single(content["classifier"])
        state = {name: t for name, t in tensors.items() if name.startswith(PREFIX)}
        weights = Weights(
            model=build_model_config(content["model"]),
            state=state,
            final_norm=False,
            norm_eps=content["norm_eps"],
            head={name: t for name, t in tensors.items() if name not in state},
            classes=tuple(content["classes"]),
            source="TATS-Fast",
            run=read_saved(config_file, FinetuneConfig) if config_file.is_file() else None,
            step=_step(path),
        )
        return check_shapes(weights, path)
    state = _single(content[EMA if ema else "mae"])
    imported = content.get("imported")
    if imported is not None:
        head = content["head"]
        weights = Weights(
            model=build_model_config(imported["model"]),
            state=state,
            final_norm=imported["final_norm"],
            norm_eps=imported["norm_eps"],
            head=None if head is None else _single(head),
            head_norm_eps=imported["head_norm_eps"],
            classes=tuple(imported["classes"]),
            source=imported["source"],
            sampling=Sampling(**imported["sampling"]),
        )
    elif not config_file.is_file():
        raise ConfigError(f"{path}: {CONFIG_FILE} is missing beside it")
    else:
        run = read_saved(config_file, RunConfig)
        sampler, head = content["sampler"], content.get("feature_head")
        weights = Weights(
            model=run.model,
            state=state,
            source="TATS-Fast",
            run=run,
            step=_step(path),
            ema=ema,
            sampler=None if sampler is None else _single(sampler),
            feature_head=None if head is None else _single(head),
        )
    return check_shapes(weights, path)


def _single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in state.items()}


def _step(path: Path) -> int | None:
    """The number in the name of a checkpoint's folder."""
    number = path.parent.name.removeprefix(STEP_PREFIX)
    return int(number) if number.isdigit() else None
