#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pyarrow 26.0.1
#
# Input: Arrow's mimalloc pool is the default. A hundred buffers of 1 MiB are allocated from it, written and freed; the
#   same with 50 buffers of the system pool (glibc). Then the system pool's release_unused() is called.
#
# Expected: the method belongs to a pool, and returns "any memory being held onto by the pool": that of the system pool.
# Happens: it releases what the default pool holds, and the system pool keeps all. Called on any pool, it acts on the
#   default one. Once the system pool has become the default, the same call releases its memory.
#
# Output seen:
#   system.release_unused(): system pool keeps 50 MiB, default pool gave back most
#   the same with system as default: system pool keeps 0 MiB
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
from pathlib import Path

import pyarrow as pa

MIB = 2**20


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def use(pool, count, size):
    buffers = [pa.allocate_buffer(size, memory_pool=pool) for _ in range(count)]
    for buffer in buffers:
        ctypes.memset(buffer.address, 1, size)


system, default = pa.system_memory_pool(), pa.mimalloc_memory_pool()
pa.set_memory_pool(default)
# freed, a buffer as large as this makes glibc keep later ones in its heap
use(system, 1, 30 * MIB)
start = resident()
use(system, 50, MIB)
of_system = resident() - start
use(default, 100, MIB)
of_default = resident() - start - of_system
assert of_default > 80, of_default
system.release_unused()
given = of_system + of_default - (resident() - start)
most = "most" if given > 0.8 * of_default else "little"
ctypes.CDLL(None).malloc_trim(0)
kept = of_system + of_default - given - (resident() - start)
print(f"system.release_unused(): system pool keeps {round(kept, -1):.0f} MiB, default pool gave back {most}")
pa.set_memory_pool(system)
start = resident()
use(system, 50, MIB)
system.release_unused()
print(f"the same with system as default: system pool keeps {abs(round(resident() - start, -1)):.0f} MiB")
PYTHON
unset ARROW_DEFAULT_MEMORY_POOL MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_ GLIBC_TUNABLES LD_PRELOAD
seen=$("$work/venv/bin/python" "$work/try.py")
echo "$seen"
expected='system.release_unused(): system pool keeps 50 MiB, default pool gave back most
the same with system as default: system pool keeps 0 MiB'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
