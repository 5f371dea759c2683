"""DeepSpeed's buffers in shared memory end with their processes, however these end."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_processes import finish, start, steps, wait_for

from tats_fast.config import save_config

SHARED = Path("/dev/shm")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no /dev/shm here")
def test_a_run_that_trains_has_no_buffer_that_a_kill_would_leave(run_config, tmp_path):
    save_config(run_config("run", train={"batch_size": 4, "log_every": 1}), tmp_path / "run.yaml")
    process = start(tmp_path / "run.yaml", launcher="deepspeed")
    port = next(part for part in process.args if part.startswith("--master_port=")).split("=")[1]
    wait_for(lambda: steps(tmp_path / "run"), process)
    assert not list(SHARED.glob(f"*_{port}_*"))
    assert "shm_comm" in finish(process), "DeepSpeed has made none"
