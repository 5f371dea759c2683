"""Every Triton kernel compiles for GPUs that are not here, fits on them, and does not spill.

What is compiled are the launches that the ops make, with their own arguments and configurations.
"""

from __future__ import annotations

import ast
import importlib
import os
from dataclasses import replace

import kernel_resources as resources
import pytest
import torch
from project import ROOT

from tats_fast.kernels import dispatch
from tats_fast.kernels.example_inputs import MAKERS, Shape

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler"
    ),
    pytest.mark.skipif(
        dispatch.triton_problem("cuda") is not None, reason="Triton is not installed"
    ),
]

OPS = tuple(MAKERS)
SHAPE = Shape()
MATRIX_OPS = ("trajectory_attention", "trajectory_temporal")  # all their kernels multiply matrices
GIANT = Shape(places=256, heads=16, dim=88)  # vit_giant, its heads in tiles of 128 channels
SMALL = Shape(batch=1, frames=3, places=36, heads=2, dim=32, decoder_width=48, visible=9)


def limit(arch):
    from tats_fast.kernels.fused.launch import ARCHITECTURES

    return ARCHITECTURES[arch] * 1024


@pytest.mark.parametrize("arch", resources.ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_chosen_configuration_at_vit_base(op, arch):
    """No spill, within shared memory, products on tensor cores."""
    launches = list(resources.launches(op, SHAPE, arch))
    assert launches, f"{op} launches nothing at level triton"
    for launch in launches:
        compiled = resources.resources_of(launch, arch)
        assert compiled.stack == 0, f"{compiled} spills"
        assert compiled.shared <= limit(arch), compiled
        if op in MATRIX_OPS:
            assert compiled.matrix, f"{compiled}: no tensor-core instruction"


@pytest.mark.slow
@pytest.mark.parametrize("arch", resources.ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_every_candidate_compiles_and_fits(op, arch):
    for launch in resources.launches(op, SHAPE, arch, candidates=True):
        compiled = resources.resources_of(launch, arch)
        assert compiled.shared <= limit(arch), compiled


@pytest.mark.parametrize(
    ("arch", "dtype"), [(89, torch.bfloat16), (90, torch.float32), (80, torch.float16)], ids=str
)
@pytest.mark.parametrize("op", OPS)
def test_other_chips_and_dtypes_fit(op, arch, dtype):
    for launch in resources.launches(op, replace(SHAPE, dtype=dtype), arch):
        assert resources.resources_of(launch, arch).shared <= limit(arch)


@pytest.mark.parametrize(
    ("arch", "frames", "dim"),
    [
        (89, 4, 64),  # 8 frames, as `visualize` asks of a 4090, in fp32
        pytest.param(80, 16, 64, marks=pytest.mark.slow),
        pytest.param(90, 16, 80, marks=pytest.mark.slow),
    ],
)
def test_other_numbers_of_frames_fit_in_fp32(arch, frames, dim):
    shape = replace(SHAPE, dtype=torch.float32, frames=frames, dim=dim)
    for launch in resources.launches("trajectory_temporal", shape, arch):
        compiled = resources.resources_of(launch, arch)
        assert compiled.shared <= limit(arch), compiled


@pytest.mark.parametrize("op", OPS)
def test_small_shapes_compile(op):
    for launch in resources.launches(op, SMALL, 90):
        assert resources.resources_of(launch, 90).shared <= limit(90)


@pytest.mark.slow
@pytest.mark.parametrize("op", MATRIX_OPS)
def test_the_giant_fits(op):
    for launch in resources.launches(op, GIANT, 90):
        assert resources.resources_of(launch, 90).shared <= limit(90)


def test_every_triton_file_is_reached():
    """A kernel that no op launches would be neither compiled nor interpreted."""
    import triton

    written = set()
    for path in (ROOT / "kernels" / "fused").glob("*.py"):
        module = importlib.import_module(f"tats_fast.kernels.fused.{path.stem}")
        kernels = [v for v in vars(module).values() if isinstance(v, triton.JITFunction)]
        written |= {k.fn.__name__ for k in kernels if k.fn.__name__.endswith("_kernel")}
    launched = {
        launch.kernel.fn.__name__ for op in OPS for launch in resources.launches(op, SHAPE, 90)
    }
    assert launched == written


def test_the_table_in_the_docs_names_every_kernel():
    text = (ROOT / "docs" / "kernels.md").read_text()
    for op in OPS:
        for launch in resources.launches(op, SHAPE, 90):
            assert f"| {resources.kernel_name(launch)} | sm_90 |" in text


def test_every_triton_file_has_the_key_to_its_names():
    key = "Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask"
    for path in (ROOT / "kernels" / "fused").glob("*.py"):
        text = path.read_text()
        if "_kernel(" in text:
            assert key in ast.get_docstring(ast.parse(text)), path.name
