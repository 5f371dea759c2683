"""benchmarks/profile_step.py: what a step's kernels do, by their names."""

from __future__ import annotations

import profile_step
import pytest


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_trajectory_attention_fwd_kernel", "our kernels"),
        ("nvjet_sm90_tst_192x192_64x4_1x2_h_bz_coopB_bias_TNN", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma", "attention"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>", "optimizer"),
        ("triton_poi_fused_gelu_view_8", profile_step.ELEMENTWISE),
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::layer_norm", profile_step.ELEMENTWISE),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert profile_step.kind_of(name) == kind


def test_kinds_add_up():
    rows = [("aten::mm", 2, 3.0), ("aten::gelu", 1, 2.0), ("aten::bmm", 1, 1.5)]
    assert profile_step.by_kind(rows) == [
        ("matrix products", 3, 4.5),
        (profile_step.ELEMENTWISE, 1, 2.0),
    ]
