"""Typed, strict configuration: dataclasses, presets, YAML files and ``key=value`` overrides."""

from tats_fast.config.checks import ConfigError
from tats_fast.config.finetune import FinetuneConfig
from tats_fast.config.reading import (
    load_config,
    load_finetune_config,
    parse_overrides,
    save_config,
)
from tats_fast.config.schema import (
    DataConfig,
    MaskingConfig,
    ModelConfig,
    PPOConfig,
    RunConfig,
    SamplerConfig,
    TrainConfig,
)
from tats_fast.config.training import DistributedConfig, OptimConfig, VideosConfig

__all__ = [
    "ConfigError",
    "DataConfig",
    "DistributedConfig",
    "FinetuneConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "RunConfig",
    "SamplerConfig",
    "TrainConfig",
    "VideosConfig",
    "load_config",
    "load_finetune_config",
    "parse_overrides",
    "save_config",
]
