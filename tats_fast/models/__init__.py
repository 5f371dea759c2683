"""The networks, what they take and give, and their cost: maths on tensors.

How they are trained, and which tokens are drawn, belongs elsewhere.
"""

from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.mae import MaskedAutoencoder
from tats_fast.models.sampler import Policy, TokenSampler, policy_learning_from
from tats_fast.models.split import Packing, TokenSplit

__all__ = [
    "MaskedAutoencoder",
    "Packing",
    "Policy",
    "TokenSampler",
    "TokenSplit",
    "VideoEncoder",
    "policy_learning_from",
]
