"""Hot ops of the training step, each with up to three implementations behind one name.

Installed as ``tats_fast.kernels``; imports nothing of the package. What belongs here is an op with
a reference; what does not is a module with parameters (``tats_fast.models``). Which implementation
runs is decided per call by ``dispatch`` from the tensors' device and ``TATS_KERNELS``; what each op
computes is said once, in ``reference``, whose docstrings the functions here carry.
"""

from __future__ import annotations

from . import composed, reference  # noqa: F401  (importing registers the implementations)
from .dispatch import (
    dispatched,
    ops,
    requested_level,
    resolve,
    resolved_level,
    triton_problem,
    use,
)
from .reference import batch_rows, normalized_patches

trajectory_attention = dispatched(reference.trajectory_attention)
trajectory_temporal = dispatched(reference.trajectory_temporal)
token_gather = dispatched(reference.token_gather)
decoder_assemble = dispatched(reference.decoder_assemble)
masked_mse = dispatched(reference.masked_mse)
change_error = dispatched(reference.change_error)
policy_logprob = dispatched(reference.policy_logprob)
policy_sample = dispatched(reference.policy_sample)

__all__ = [
    "batch_rows",
    "change_error",
    "decoder_assemble",
    "masked_mse",
    "normalized_patches",
    "ops",
    "policy_logprob",
    "policy_sample",
    "requested_level",
    "resolve",
    "resolved_level",
    "token_gather",
    "trajectory_attention",
    "trajectory_temporal",
    "triton_problem",
    "use",
]
