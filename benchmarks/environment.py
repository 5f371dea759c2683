"""What a suite ran on: hardware, versions, what is missing, and the device's measured ceilings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from parts import bench, ceilings

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import pick_device

OPTIONAL = {
    "av": "real clips (generated ones instead)",
    "deepspeed": "ZeRO",
    "flash_attn": "FlashAttention (SDPA instead)",
    "matplotlib": "charts (plots.py draws them later from the JSON files)",
    "nvidia.dali": "decoding on the GPU",
    "transformers": "export",
    "triton": "Triton kernels",
}
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,power.draw"


def missing() -> dict[str, str]:
    """Optional packages that are not here, and what is skipped for that."""
    return {name: purpose for name, purpose in OPTIONAL.items() if not _importable(name)}


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package
        return False


def nvidia_smi() -> str | None:
    """One line about the card as it was found; None where the tool is not."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 wrong use."""
    parser = bench.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seconds", type=bench.positive_float, default=ceilings.SECONDS,
                        help="spent on each ceiling")  # fmt: skip
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        device = pick_device(options.device)
    except ConfigError as error:
        return bench.fail(str(error), 2)
    measured = {
        name: ceilings.measure(device, dtype, options.seconds)._asdict()
        for dtype, name in ceilings.NAMES.items()
        if dtype != torch.float16
    }
    record: dict[str, Any] = {
        "hardware": bench.hardware(device),
        "versions": bench.versions(),
        "commit": bench.git_commit(),
        "missing": missing(),
        "nvidia_smi": nvidia_smi(),
        "measured": measured,
    }
    print(bench.hardware_line(record["hardware"]))
    for name, found in record["measured"].items():
        print(
            f"{name}: {found['bandwidth'] / 1e9:,.0f} GB/s, {found['rate'] / 1e12:,.3g} TFLOP/s, "
            f"{found['source']}"
        )
    for name, purpose in record["missing"].items():
        print(f"{name} is not installed; without it no {purpose}")
    if options.json:
        bench.write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
