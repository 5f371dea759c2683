"""Which process the others wait for, on the record of a run."""

from __future__ import annotations

import math

import pytest
from project import ROOT
from records import read_lines
from run_processes import finish, start

from tats_fast.config import save_config
from tats_fast.engine.exchange import across
from tats_fast.engine.logs import RunLog

SLOW = """
import sys, time
sys.path.insert(0, {support!r})
import torch.distributed as dist
from legs import main
from tats_fast.engine.runner import TorchRunner

init = TorchRunner.__init__

def slow(self, *arguments):
    init(self, *arguments)
    forward = self.forward
    self.forward = lambda *inputs: (time.sleep(0.4 * dist.get_rank()), forward(*inputs))[1]

TorchRunner.__init__ = slow
main()
"""


def row(wait, busy, data=0.1, memory=10.0):
    return {
        "clips_per_s": 1.0,
        "data_wait_frac": data,
        "exchange_wait_frac": wait,
        "busy_s": busy,
        "peak_mem_mb": memory,
    }


def test_least_and_most_of_all_processes():
    found = across([row(0.5, 1.0), row(0.0, 2.0, data=0.3), row(0.25, 1.5, memory=30.0)])
    assert (found["exchange_wait_frac_min"], found["exchange_wait_frac_max"]) == (0, 0.5)
    assert (found["busy_s_min"], found["busy_s_max"], found["slowest_rank"]) == (1, 2, 1)
    assert (found["data_wait_frac"], found["data_wait_frac_max"]) == (0.1, 0.3)
    assert (found["peak_mem_mb"], found["peak_mem_mb_max"]) == (10, 30)
    assert "busy_s" not in found and "exchange_wait_frac" not in found


def test_one_process_and_a_line_that_nobody_watched_say_nothing():
    alone = {"clips_per_s": 1.0, "data_wait_frac": 0.1, "peak_mem_mb": 10.0}
    assert across([alone]) == alone
    found = across([row(math.nan, math.nan), row(math.nan, math.nan)])
    assert set(found) == {*alone, "data_wait_frac_max", "peak_mem_mb_max"}


@pytest.mark.slow
def test_a_slow_process_is_named(run_config, tmp_path):
    """Rank 1 sleeps 0.4 s in each forward pass: rank 0 waits so long for its gradients."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(support=str(ROOT / "tests/support")))
    save_config(run_config(sampler={"warmup_frac": 1.0}), tmp_path / "run.yaml")
    output = finish(
        start(tmp_path / "run.yaml", "--leg", "name=run", launcher="torchrun", script=str(script))
    )
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["slowest_rank"] == 1
    assert last["exchange_wait_frac_max"] > 0.3 > last["exchange_wait_frac_min"]
    assert last["busy_s_max"] - last["busy_s_min"] > 0.2
    assert "rank 1 holds the others up" in output


def test_the_progress_line_names_a_slow_process_only(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 10, ())
    even = {"step": 1, "clips_per_s": 1.0, "slowest_rank": 1}
    log.metrics({**even, "exchange_wait_frac_min": 0.1, "exchange_wait_frac_max": 0.2})
    assert "rank" not in log.numbers
    log.metrics({**even, "exchange_wait_frac_min": 0.1, "exchange_wait_frac_max": 0.5})
    assert "rank 1 holds the others up" in log.numbers
    log.close()
