#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lancedb 0.40.0 with lance-namespace-urllib3-client 0.13.0 and pydantic 2.14.3, Python 3.11 or later, Linux.
#
# Input: a program imports lancedb for a table in a local folder.
#
# Expected: the import loads what a local table needs. A client for a remote service is loaded when one is connected to.
# Happens: `import lancedb` also imports a generated client for the REST interface of Lance namespaces, with a pydantic
#   validator for each of its functions. They are built while the modules are imported: half a second of CPU, more than a
#   third of the whole import. A local table calls none of them. Validators that are built at their first call cost nothing.
#
# Output seen:
#   validators built by import lancedb: 366
#   calls of them while a local table is created, filled and read: 0
#   share of the import's CPU time without which it does as much: more than a quarter
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lancedb==0.40.0 lance-namespace-urllib3-client==0.13.0 pydantic==2.14.3 || exit 2
cat > "$work/count.py" << 'END'
import sys
import tempfile
from functools import wraps
from time import process_time

import pydantic

eager = pydantic.validate_call
built, calls = [], []


def counted(function=None, /, **options):
    if function is None:
        return lambda given: counted(given, **options)
    built.append(function)

    @wraps(function)
    def call(*args, **kwargs):
        calls.append(function)
        return eager(function, **options)(*args, **kwargs)

    return call


if sys.argv[1] == "lazy":
    pydantic.validate_call = counted
import numpy  # noqa: E402, F401
import pyarrow.dataset  # noqa: E402, F401

begun = process_time()
import lancedb  # noqa: E402

took = process_time() - begun
with tempfile.TemporaryDirectory() as folder:
    table = lancedb.connect(folder).create_table("numbers", [{"number": 1}])
    table.add([{"number": 2}])
    assert table.to_arrow().num_rows == 2
print(len(built), len(calls), took)
END
run() { "$work/venv/bin/python" "$work/count.py" "$1" 2> "$work/log" || { cat "$work/log" >&2; exit 2; }; }
run lazy > /dev/null # compiles the modules
times=$(for _ in 1 2 3; do run eager; run lazy; done)
seen=$(echo "$times" | python3 -c '
import sys
from statistics import median

rows = [line.split() for line in sys.stdin]
eager, lazy = (median(float(row[2]) for row in rows[first::2]) for first in (0, 1))
print(f"validators built by import lancedb: {rows[1][0]}")
print(f"calls of them while a local table is created, filled and read: {rows[1][1]}")
share = 1 - lazy / eager
text = "more than a quarter" if share > 0.25 else f"{share:.0%}"
print(f"share of the import\x27s CPU time without which it does as much: {text}")
')
echo "$seen"
expected="validators built by import lancedb: 366
calls of them while a local table is created, filled and read: 0
share of the import's CPU time without which it does as much: more than a quarter"
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
