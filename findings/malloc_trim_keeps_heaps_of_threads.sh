#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pyarrow 26.0.1 on glibc 2.36 (Debian 12); the C library is that of the machine.
#
# Input: eight threads each allocate 50 buffers of 1 MiB from Arrow's system pool, write them, and free all of them. A
#   buffer of 30 MiB was allocated and freed before, as by any program that holds larger ones.
#
# Expected: the pool counts 0 allocated bytes, and its release_unused() gives the pages back: it calls malloc_trim, whose
#   manual says that it frees whole free pages in all arenas.
# Happens: 300 to 400 MiB stay resident, also when the threads have ended. malloc_trim shortens the free end of the main heap
#   alone. That of a thread's heap, here all of it, stays. Freeing does not shorten it either: the freed buffer of 30 MiB
#   has raised the threshold for that from 128 KiB to 60 MiB. With one heap for all threads (MALLOC_ARENA_MAX=1), all of it
#   is given back.
#
# Output seen:
#   a heap for each thread: 0 MiB allocated, more than 200 MiB kept after release_unused
#   one heap for all threads: 0 MiB allocated, less than 20 MiB kept after release_unused
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried (no glibc).
set -euo pipefail
getconf GNU_LIBC_VERSION > /dev/null 2>&1 || { echo "needs glibc"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
cat > "$work/try.py" <<'PYTHON'
import ctypes
import os
import sys
from pathlib import Path
from threading import Barrier, Thread

import pyarrow as pa

THREADS, BUFFERS, MIB = 8, 50, 2**20
pool = pa.system_memory_pool()
# release_unused() acts on the default pool
pa.set_memory_pool(pool)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write(num_bytes):
    buffer = pa.allocate_buffer(num_bytes, memory_pool=pool)
    ctypes.memset(buffer.address, 1, num_bytes)
    return buffer


def work():
    buffers = [write(MIB) for _ in range(BUFFERS)]
    held.wait()
    del buffers


write(30 * MIB)
before = resident()
# all threads are alive at the same time: one that begins later would take the heap of one that has ended
held = Barrier(THREADS)
threads = [Thread(target=work) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
pool.release_unused()
kept = (resident() - before) / MIB
# how many heaps the threads get varies
said = "more than 200" if kept > 200 else "less than 20" if kept < 20 else f"{kept:.0f}"
print(f"{sys.argv[1]}: {pool.bytes_allocated() // MIB} MiB allocated, {said} MiB kept after release_unused")
PYTHON
unset MALLOC_ARENA_MAX MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_ GLIBC_TUNABLES LD_PRELOAD
seen=$("$work/venv/bin/python" "$work/try.py" "a heap for each thread")
seen+=$'\n'$(MALLOC_ARENA_MAX=1 "$work/venv/bin/python" "$work/try.py" "one heap for all threads")
echo "$seen"
expected='a heap for each thread: 0 MiB allocated, more than 200 MiB kept after release_unused
one heap for all threads: 0 MiB allocated, less than 20 MiB kept after release_unused'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
