# SPDX-License-Identifier: Apache-2.0
"""Allocator settings of workers in the C library, in a process of its own."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from actors.workers.base import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def work():
    for _ in range(2):
        parts = [torch.zeros(2**20).add_(1.0) for _ in range(6)]
        del parts

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    work()
    before = faults()
    for _ in range(20):
        work()
    print(faults() - before)

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there is the C library told anything")
def test_a_thread_uses_freed_memory_again() -> None:
    """Allocate and free six tensors of 4 MiB twenty times; more would not fit into one of the heaps."""
    kept, freed = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "free")
    )
    assert kept < freed / 4
