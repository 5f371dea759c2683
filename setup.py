"""Which folders become the package; everything else about it is in pyproject.toml."""

from setuptools import find_packages, setup

# Folders of the repository that install inside the package. PyPI's package "kernels" owns that
# import name: ours is reachable as a subpackage only.
INSIDE = {"tats_fast.kernels": "kernels", "tats_fast.configs": "configs"}

setup(
    packages=[
        *find_packages(include=["tats_fast", "tats_fast.*"]),
        *("tats_fast.kernels", "tats_fast.kernels.fused"),
        *("tats_fast.configs", "tats_fast.configs.pretrain", "tats_fast.configs.finetune"),
    ],
    package_dir=INSIDE,
    package_data={
        "tats_fast": ["py.typed"],
        "tats_fast.data": ["doctor_frame.mp4"],
        **{f"tats_fast.configs{part}": ["*.yaml"] for part in ("", ".pretrain", ".finetune")},
    },
)
