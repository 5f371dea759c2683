"""What a suite ran on: hardware, versions, what is missing, and the device's measured ceilings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from parts import bench, ceilings

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


def run(options: Any) -> int:
    """Measure the ceilings, print and write everything."""
    device = pick_device(options.device)
    ceilings_by_dtype = {
        name: ceilings.measure(device, dtype, options.seconds)._asdict()
        for dtype, name in ceilings.NAMES.items()
        if dtype != torch.float16
    }
    record = bench.new_record(device)
    record["missing"] = {
        name: purpose for name, purpose in OPTIONAL.items() if not bench.installed(name)
    }
    record["nvidia_smi"] = bench.output_of("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv")
    record["measured"] = ceilings_by_dtype
    print(bench.hardware_line(record["hardware"]))
    for name, top in record["measured"].items():
        print(
            f"{name}: {top['bandwidth'] / 1e9:,.0f} GB/s, {top['rate'] / 1e12:,.3g} TFLOP/s, "
            f"{top['source']}"
        )
    for name, purpose in record["missing"].items():
        print(f"{name} is not installed; without it no {purpose}")
    if options.json:
        bench.write_json(options.json, record)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 wrong use."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    seconds = "spent on each ceiling (default: %(default)g)"
    add("--seconds", type=bench.positive_float, default=ceilings.SECONDS, help=seconds)
    add("--json", metavar="FILE", help="write the record")
    return bench.run_script(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
