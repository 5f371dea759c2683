"""25 kills, five under each engine, and not a bit of difference; ``make soak`` has 200."""

from __future__ import annotations

import pytest
from soak import AFTER, ENGINES, PER_KILL, soak


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_runs_end_as_an_undisturbed_one(tmp_path, engine):
    found = soak(tmp_path, engine, kills=5, seed=1)
    assert sum(found["kills"].values()) == 5
    assert found["rows"] == 5 * PER_KILL + AFTER and found["tensors"] > 100
    assert found["differing_rows"] == found["differing_tensors"] == 0


@pytest.mark.slow
def test_more_than_two_processes_add_up_in_one_order_after_a_kill_too(tmp_path):
    """Two numbers have one sum whatever the order; four do not."""
    found = soak(tmp_path, "ddp", kills=1, seed=1, ranks=4)
    assert found["differing_rows"] == found["differing_tensors"] == 0 and found["rows"] > 50
