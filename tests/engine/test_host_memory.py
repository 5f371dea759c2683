"""Freed memory stays with the process: counted in page faults, in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tats_fast.engine.host_memory import keep_freed_memory

COUNT = """
import resource, sys, torch
from tats_fast.engine.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def allocate(times):
    for _ in range(times):
        torch.ones(2**24)  # 64 MiB, freed at once
allocate(20)
before = faults()
allocate(10)
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="C library is not glibc")
def test_tensors_of_the_same_size_fault_once():
    def faults(way: str) -> int:
        command = [sys.executable, "-c", COUNT, way]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    kept, returned = faults("keep"), faults("return")
    assert kept < 100
    assert returned >= 10 * 16  # at least one for every page, should they all be huge


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
