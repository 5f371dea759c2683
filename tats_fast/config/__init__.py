"""Typed, strict configuration: dataclasses, presets, YAML files and ``key=value`` overrides.

What a setting does belongs to whoever reads it; here are its default, its help and its bounds.
"""

from tats_fast.config.checks import ConfigError, Failure
from tats_fast.config.finetune import FinetuneConfig
from tats_fast.config.model import ModelConfig
from tats_fast.config.reading import (
    load_config,
    load_finetune_config,
    parse_overrides,
    read_saved,
    save_config,
)
from tats_fast.config.schema import (
    DataConfig,
    MaskingConfig,
    PPOConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)
from tats_fast.config.training import (
    DistributedConfig,
    OptimConfig,
    TrainingConfig,
    VideosConfig,
)

__all__ = [
    "ConfigError",
    "DataConfig",
    "DistributedConfig",
    "Failure",
    "FinetuneConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "RunConfig",
    "SamplerConfig",
    "TrainConfig",
    "TrainingConfig",
    "VideosConfig",
    "load_config",
    "load_finetune_config",
    "parse_overrides",
    "read_saved",
    "save_config",
]
