"""benchmarks/cpu_levers.py from end to end, on a step of milliseconds."""

from __future__ import annotations

import json

import pytest
from scripts import run_script

TINY = (
    *("--image-size", "32", "--frames", "4", "--mask-ratio", "0.75", "--steps", "2"),
    *("--rounds", "1", "model.patch_size=8", "model.width=32", "model.depth=1", "model.heads=2"),
    *("model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2"),
)


@pytest.mark.slow
def test_every_case_is_measured(tmp_path):
    file = tmp_path / "record.json"
    done = run_script("cpu_levers.py", *TINY, "--json", file)
    assert done.returncode == 0, done.stderr
    cases = json.loads(file.read_text())["cases"]
    assert list(cases) == ["fp32", "fp32 kept", "bf16", "bf16 kept"]
    loss = {name: case[0]["loss"] for name, case in cases.items()}
    assert loss["fp32"] == loss["fp32 kept"] != loss["bf16"] == loss["bf16 kept"]
    assert all(case[0]["cpu_ms"] > 0 and case[0]["peak_mib"] > 0 for case in cases.values())


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [("--model", "vit_bas", "did you mean vit_base?"), ("--precision", "bf16", "every case sets")],
)
def test_a_wrong_option_costs_no_process(option, value, complaint):
    done = run_script("cpu_levers.py", option, value)
    assert done.returncode == 2 and complaint in done.stderr
