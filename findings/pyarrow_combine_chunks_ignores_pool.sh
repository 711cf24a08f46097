#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pyarrow 26.0.1: ChunkedArray.combine_chunks takes a memory pool and does not allocate in it.
#
# Input: two chunks of 1,000 float32 numbers, joined by three calls that document the same parameter `memory_pool`.
#   The pool given is the system's; pyarrow's default pool is another one.
#
# Expected: all three allocate the 8,000 bytes of the result in the pool that is given, so that a program can bound or
#   count one part of its memory.
# Happens: ChunkedArray.combine_chunks allocates them in the default pool. Table.combine_chunks and concat_arrays use
#   the given one.
#
# Output seen:
#   ChunkedArray.combine_chunks: default pool 8000, given pool 0
#   Table.combine_chunks: default pool 0, given pool 8000
#   concat_arrays: default pool 0, given pool 8000
#
# Exits with 0 while this holds, with 1 when it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6

seen=$(ARROW_DEFAULT_MEMORY_POOL=mimalloc "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import pyarrow as pa

chunks = [pa.array(np.zeros(1_000, np.float32)), pa.array(np.zeros(1_000, np.float32))]
joined = pa.chunked_array(chunks)
default, given = pa.default_memory_pool(), pa.system_memory_pool()
ways = {
    "ChunkedArray.combine_chunks": lambda: joined.combine_chunks(memory_pool=given),
    "Table.combine_chunks": lambda: pa.table({"x": joined}).combine_chunks(memory_pool=given),
    "concat_arrays": lambda: pa.concat_arrays(chunks, memory_pool=given),
}
for name, way in ways.items():
    before = default.bytes_allocated(), given.bytes_allocated()
    result = way()
    after = default.bytes_allocated(), given.bytes_allocated()
    print(f"{name}: default pool {after[0] - before[0]}, given pool {after[1] - before[1]}")
    del result
PYTHON
)
echo "$seen"
expected='ChunkedArray.combine_chunks: default pool 8000, given pool 0
Table.combine_chunks: default pool 0, given pool 8000
concat_arrays: default pool 0, given pool 8000'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
