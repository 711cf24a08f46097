# SPDX-License-Identifier: Apache-2.0
"""Options of the C library's heaps, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from longmem.system import heap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the options are glibc's")

FAULTS = """
import resource, sys, threading
import ray  # as a worker has it; with it, freed heaps are trimmed
import torch
from longmem.system.heap import keep_freed_memory

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


def test_a_thread_uses_freed_memory_again() -> None:
    """Allocate and free six tensors of 4 MiB twenty times; more would not fit into one of the heaps."""
    kept, freed = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "free")
    )
    assert kept < freed / 4


HEAPS = """
import ctypes, sys, tempfile
from pathlib import Path
import numpy as np
from longmem.store.config import StoreSettings
from longmem.system import heap
from longmem.types import DocumentKey, Fingerprint, KVBlock

if sys.argv[1] == "free":
    # as glibc begins: eight heaps a core
    heap.NUM_HEAPS = 0

fingerprint = Fingerprint("backbone", "tokenizer", 5, 4, 64, 1, 512, "float32", "float16")
with StoreSettings(sys.argv[2]).open() as store:
    for segment in range(4):
        states = np.zeros((512, 4, 64), dtype=np.float16)
        tokens = np.zeros(512, dtype=np.int32)
        store.put(KVBlock(DocumentKey("n", "d"), segment, 512 * segment, tokens, states, states, fingerprint))
    store.read(DocumentKey("n", "d"), 0, 4)
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as told:
        file = ctypes.c_void_p(libc.fopen(told.name.encode(), b"w"))
        libc.malloc_info(0, file)
        libc.fclose(file)
        print(Path(told.name).read_text().count("<heap nr="))
"""


def test_threads_of_lance_share_two_heaps(tmp_path: Path) -> None:
    limited, free = (
        int(subprocess.run([sys.executable, "-c", HEAPS, how, tmp_path / how], check=True, capture_output=True).stdout)
        for how in ("limit", "free")
    )
    assert limited == 2 < free


RETURNED = """
import ctypes, sys, threading
import psutil
from longmem.system.heap import return_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use(count, num_bytes):
    held = [libc.malloc(num_bytes) for _ in range(count)]
    for address in held:
        ctypes.memset(address, 1, num_bytes)
    together.wait()
    for address in held:
        libc.free(address)

def in_threads(count, num_bytes):
    threads = [threading.Thread(target=use, args=(count, num_bytes)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

together = threading.Barrier(12)
# heaps of their own, before anything is set
in_threads(1, 1000)
if sys.argv[1] == "return":
    return_freed_memory()
else:
    # as any large buffer does that was freed
    libc.free(libc.malloc(30 * 2**20))
before = psutil.Process().memory_info().rss
in_threads(12, 2**21)
print((psutil.Process().memory_info().rss - before) // 2**20)
"""


def test_heaps_of_earlier_threads_return_freed_memory() -> None:
    """Use 24 MiB in each of twelve threads, in buffers of 2 MiB, as large as those of blocks or smaller."""
    returned, kept = (
        int(subprocess.run([sys.executable, "-c", RETURNED, how], check=True, capture_output=True).stdout)
        for how in ("return", "keep")
    )
    assert returned < 30 < 100 < kept


def test_a_periodic_trim_trims_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[float] = []
    now = 5.0
    monkeypatch.setattr(heap, "trim_heap", lambda: trimmed.append(now))
    trim = heap.PeriodicTrim(clock=lambda: now)
    for now in (5.0, 14.9, 15.0, 24.9, 25.5, 35.4, 35.5):  # noqa: B007 - read by the clock
        trim()
    assert trimmed == [15.0, 25.5, 35.5]
