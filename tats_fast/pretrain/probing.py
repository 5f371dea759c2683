"""``eval.probe_every``: probes of the frozen encoder in the middle of pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tats_fast.config import RunConfig
from tats_fast.data.labels import label_numbers, warn_of_odd_names
from tats_fast.data.lists import Video, read_videos
from tats_fast.models import MaskedAutoencoder
from tats_fast.recognition.features import FeatureSettings
from tats_fast.recognition.probe import probe_model


@dataclass(frozen=True)
class Prober:
    """Labelled videos, and how to probe an encoder with them."""

    config: RunConfig
    train: list[Video]
    eval: list[Video]

    @classmethod
    def of(cls, config: RunConfig) -> Prober | None:
        """What ``config.eval`` asks for, or None.

        Raises:
            ConfigError: a missing list, or labels that do not fit; one line.
        """
        settings = config.eval
        if settings.probe_every == 0:
            return None
        root = config.data.root
        train = read_videos(settings.probe_train, root, key="eval.probe_train")
        held_out = read_videos(settings.probe_eval, root, key="eval.probe_eval")
        keys = ("eval.probe_train", "eval.probe_eval")
        warn_of_odd_names(label_numbers(train, held_out, keys)[2], keys[0])
        return cls(config, train, held_out)

    def measure(self, mae: MaskedAutoencoder) -> tuple[dict[str, Any], str]:
        """Top-1 of each kind, ``probe_<kind>`` in [0, 1], and the same in words.

        Leaves the model and the random generators as they are.
        """
        config = self.config
        kinds = config.eval.probe_kinds
        settings = FeatureSettings(
            stride=config.data.stride,
            fps=config.data.fps,
            workers=max(1, config.data.workers),
            timeout=config.data.timeout_s,
        )
        # Compiled for the shapes of training, which these are not.
        with torch.compiler.set_stance("force_eager"):
            report = probe_model(
                mae.encoder, self.train, self.eval, kinds=kinds, settings=settings, seed=config.seed
            )
        row: dict[str, Any] = {f"probe_{result.kind}": result.top1 for result in report.results}
        row["probe_unreadable"] = len(report.bad_train) + len(report.bad_eval)
        tops = ", ".join(f"{result.kind} {100 * result.top1:.1f}%" for result in report.results)
        return row, f"probes on {report.eval_videos} videos: {tops}"
