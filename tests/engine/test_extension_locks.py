"""A lock that a killed build left is removed; one in use is not, a young one is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from threading import Timer

import pytest

from tats_fast.engine.extension_locks import OLD, announce_first_build, settle_locks

BUILD = """
import sys, time
from torch.utils.file_baton import FileBaton

assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(100)
"""


@pytest.fixture(params=["op", "py3_cpu/op"])
def lock(request, tmp_path):
    path = tmp_path / request.param / "lock"
    path.parent.mkdir(parents=True)
    return path


@contextmanager
def build(lock):
    """A process that builds until it is killed, and so leaves its lock behind."""
    command = [sys.executable, "-c", BUILD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "building\n"
        yield
        process.send_signal(signal.SIGKILL)


def age(lock, seconds):
    then = time.time() - seconds
    os.utime(lock, (then, then))


def test_the_lock_of_a_killed_build(tmp_path, lock):
    with build(lock):
        age(lock, 2 * OLD)
        assert settle_locks(tmp_path) == [] and lock.exists()
    assert settle_locks(tmp_path) == [lock] and not lock.exists()


def test_a_young_lock_is_waited_for(tmp_path, lock, caplog):
    with build(lock):
        pass
    age(lock, OLD - 2.4)  # killed a while ago: PyTorch would wait for ever
    start = time.monotonic()
    assert settle_locks(tmp_path) == [lock] and not lock.exists()
    assert 1 < time.monotonic() - start < 30
    waiting, removed = [record.getMessage() for record in caplog.records]
    assert waiting.startswith(f"waiting for {lock}: ") and "in 2 s" in waiting
    assert removed.startswith(f"removed {lock}")


def test_another_hosts_build_ends(tmp_path, lock):
    lock.touch()
    Timer(1, lock.unlink).start()
    assert settle_locks(tmp_path) == []


def test_no_other_host_builds_there(tmp_path, lock):
    with build(lock):
        assert settle_locks(tmp_path, patience=0) == [] and lock.exists()
    assert settle_locks(tmp_path, patience=0) == [lock]


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
