"""Masked autoencoder and token sampler."""

from tats_fast.models.mae import MaskedAutoencoder, Reconstruction, TokenSplit
from tats_fast.models.sampler import Policy, TokenSampler

__all__ = ["MaskedAutoencoder", "Policy", "Reconstruction", "TokenSampler", "TokenSplit"]
