"""24 kills, six under each engine, and not a bit of difference; ``make soak`` has 200.

Those under launchers take minutes and are left to ``make soak-short``."""

from __future__ import annotations

import pytest
from soak import ENGINES, soak

LAUNCHED = [name for name in ENGINES if name != "plain"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["plain", *(pytest.param(name, marks=pytest.mark.soak) for name in LAUNCHED)]
)
def test_killed_runs_end_as_an_undisturbed_one(tmp_path, engine):
    found = soak(tmp_path, engine, kills=6, seed=1)
    assert sum(found["kills"].values()) == 6
    assert found["rows"] == 84 and found["tensors"] > 100
    assert found["differing_rows"] == found["differing_tensors"] == 0
