# SPDX-License-Identifier: Apache-2.0
"""Options of the C library's heaps, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

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
