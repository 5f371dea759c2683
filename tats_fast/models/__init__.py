"""Masked autoencoder and token sampler."""

from tats_fast.models.mae import MaskedAutoencoder, Reconstruction
from tats_fast.models.sampler import Policy, TokenSampler
from tats_fast.models.split import Packing, TokenSplit

__all__ = [
    "MaskedAutoencoder",
    "Packing",
    "Policy",
    "Reconstruction",
    "TokenSampler",
    "TokenSplit",
]
