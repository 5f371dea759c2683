"""A small model, its checkpoint and logs, and a parser for the pages of a report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch

from tats_fast.config import RunConfig, save_config
from tats_fast.config.reading import build_config
from tats_fast.models.restore import build_models
from tats_fast.weights_file import write_state

NAMES = ("sampler", "random", "motion")
METRICS = [
    {"step": 10, "loss_recon": 1.25, "strategy": "random (warm-up)", "entropy_frac": None},
    {"step": 20, "loss_recon": 1.0, "lr": 1e-4, "entropy_frac": 0.9, "clips_per_s": 7.0},
    {"step": 30, "loss_recon": 1.0, "lr": 1e-4, "entropy_frac": 0.9, "clips_per_s": 7.0},
]
EVALUATIONS = [
    {"step": 0, "loss_recon_random": 1.6, "entropy_frac": 0.9991, "motion_lift_random": 1.011},
    {"step": 15, "loss_recon_random": 1.3},
    {"step": 30, "loss_recon_random": 1.2, "entropy_frac": 0.8765, "motion_lift_random": 0.987}
    | {"motion_lift_sampler": 1.543, "motion_lift_motion": 3.21},
]


def tiny(strategy: str = "tats") -> RunConfig:
    model = {"image_size": 32, "patch_size": 8, "num_frames": 16, "width": 32, "depth": 1}
    model |= {"heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    masking = {"strategy": strategy, "ratio": 0.9}
    return build_config({"name": "tiny", "model": model, "masking": masking, "data": {"stride": 1}})


def models(config: RunConfig):
    torch.manual_seed(0)
    mae, sampler = build_models(config, "cpu")
    if sampler is not None:  # a policy with opinions, or its draws would be those of chance
        torch.nn.init.normal_(sampler.actor.weight, std=0.5)
    return mae.eval(), sampler


def noise_clips(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (count, 16, 32, 32, 3), generator=generator, dtype=torch.uint8)
    clips[:, :, :16] = clips[:, :1, :16]  # the upper half stands still
    return clips


def save_checkpoint(config: RunConfig, folder: Path) -> Path:
    folder.mkdir(parents=True)
    mae, sampler = models(config)
    state = {"mae": mae.state_dict()}
    if sampler is not None:
        state["sampler"] = sampler.state_dict()
    write_state(state, folder / "model.safetensors")
    save_config(config, folder / "config.yaml")
    return folder


class Parsed(HTMLParser):
    """Every reference a browser would follow, every tag in order, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        names = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
        self.references += [value or "" for name, value in attrs if name in names]

    def handle_data(self, data: str) -> None:
        self.text += data
