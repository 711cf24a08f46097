#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lancedb 0.40.0 and pyarrow 26.0.1 on glibc (the C library is that of the machine, asked for the size of its heap).
#
# Input: one process appends 800 rows of one number, one at a time, to a table in a folder. Nothing is searched or read.
#
# Expected: the process holds what it is about to write. The table is 800 numbers.
# Happens: the heap has grown by more than 100 MiB, faster with each commit: one near the 800th takes four times what one
#   near the 150th takes. Each version of the table has a manifest that names all fragments so far, and a connection keeps
#   the manifests of all versions that it wrote in its metadata cache. Nothing ever asks for them again. The limit is
#   7 GiB for a connection, unless it gets a session with a lower one: with 1 MiB, the heap grows by less than 10 MiB.
#
# Output seen:
#   default session: more than 100 MiB after 800 commits, commits 700 to 800 take more than 3 times those of 100 to 200
#   metadata cache of 1 MiB: less than 10 MiB after 800 commits
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried.
set -euo pipefail
python3 -c 'import ctypes; ctypes.CDLL(None).mallinfo2' 2> /dev/null || { echo "needs glibc 2.33 or later"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lancedb==0.40.0 pyarrow==26.0.1 || exit 2
cat > "$work/try.py" <<'PYTHON'
import ctypes
import sys

import lancedb
import pyarrow as pa

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


ask = ctypes.CDLL(None).mallinfo2
ask.restype = MallInfo


def heap():
    info = ask()
    return (info.uordblks + info.hblkhd) / 2**20


folder, small = sys.argv[1], sys.argv[2] == "small"
limits = {"session": lancedb.Session(index_cache_size_bytes=2**20, metadata_cache_size_bytes=2**20)} if small else {}
table = lancedb.connect(folder, **limits).create_table("numbers", schema=pa.schema([("number", pa.int64())]))
sizes = [heap()]
for number in range(800):
    table.add(pa.table({"number": [number]}))
    if number % 100 == 99:
        sizes.append(heap())
assert table.count_rows() == 800
grown = sizes[-1] - sizes[0]
early, late = sizes[2] - sizes[1], sizes[8] - sizes[7]
if small:
    said = "less than 10" if grown < 10 else f"{grown:.0f}"
    print(f"metadata cache of 1 MiB: {said} MiB after 800 commits")
else:
    said = "more than 100" if grown > 100 else f"{grown:.0f}"
    times = "more than 3" if late > 3 * early else f"{late / early:.1f}"
    print(
        f"default session: {said} MiB after 800 commits, commits 700 to 800 take {times} times those of 100 to 200"
    )
PYTHON
seen=$("$work/venv/bin/python" "$work/try.py" "$work/default" default)
seen+=$'\n'$("$work/venv/bin/python" "$work/try.py" "$work/small" small)
echo "$seen"
expected='default session: more than 100 MiB after 800 commits, commits 700 to 800 take more than 3 times those of 100 to 200
metadata cache of 1 MiB: less than 10 MiB after 800 commits'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
