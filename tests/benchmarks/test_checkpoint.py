"""benchmarks/checkpoint.py from end to end, on a small model."""

from __future__ import annotations

from scripts import run_script


def test_every_part_is_timed(tmp_path):
    done = run_script("checkpoint.py", "--preset", "vit_tiny", "--rounds", 2, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()[-6:]
    assert table[0].split() == ["part", "p20", "p50", "p80"]
    medians = {row[:22].strip(): float(row.split()[-2]) for row in table[1:]}
    names = {"copy (training waits)", "write", "of it seal", "verify", "load"}
    assert set(medians) == names
    assert 0 < medians["of it seal"] < medians["write"]
    assert not list(tmp_path.iterdir())
