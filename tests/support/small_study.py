"""A study of seconds."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")
TINY = {
    "image_size": 16,
    "num_frames": 4,
    "tubelet_size": 2,
    "patch_size": 8,
    "width": 32,
    "depth": 1,
    "heads": 2,
    "decoder_width": 32,
    "decoder_depth": 1,
    "decoder_heads": 2,
}


def tree(**changes: object) -> dict:
    """A study of seconds."""
    probe = {"task": "object", "train": 48, "test": 16}
    return {
        "name": "tiny",
        "model": TINY,
        "base": {"train.precision": "fp32", "sampler.warmup_frac": 0.5, "ppo.epochs": 1},
        "steps": 2,
        "batch_size": 4,
        "seeds": [0, 1],
        "ratios": [0.75],
        "data": {"object": {"task": "object", "area": 0.1}},
        "strategies": {
            "untrained": {},
            "random": {},
            "tats": {"masking.strategy": "tats", "ppo.reward": "change_error"},
            "oracle": {"oracle": 8},
        },
        "probes": {"object": probe},
        "kinds": ["knn"],
        **changes,
    }


def tats() -> dict:
    return {"masking.strategy": "tats"}
