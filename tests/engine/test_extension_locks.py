"""A lock that a killed build left is removed; one that somebody holds, or a young one, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tats_fast.engine.extension_locks import OLD, announce_first_build, remove_stale_locks

BUILD = """
import sys, time
from torch.utils.file_baton import FileBaton

assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("folder", ["op", "py3_cpu/op"])
def test_the_lock_of_a_killed_build(tmp_path, folder):
    lock = tmp_path / folder / "lock"
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", BUILD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout.readline() == "building\n"
        then = time.time() - 2 * OLD
        os.utime(lock, (then, then))
        assert remove_stale_locks(tmp_path) == [] and lock.exists()
        build.send_signal(signal.SIGKILL)
    os.utime(lock)
    assert remove_stale_locks(tmp_path) == []  # young: it may be another host's
    os.utime(lock, (then, then))
    assert remove_stale_locks(tmp_path) == [lock] and not lock.exists()


def test_a_first_build_is_announced(tmp_path, caplog):
    caplog.set_level("INFO", logger="tats_fast")
    announce_first_build(tmp_path)
    (record,) = caplog.records
    assert "compiles an op at its first start" in record.getMessage()
    caplog.clear()
    op = tmp_path / "py3_cpu" / "deepspeed_shm_comm"
    op.mkdir(parents=True)
    (op / "deepspeed_shm_comm.so").write_bytes(b"")
    announce_first_build(tmp_path)
    assert not caplog.records
