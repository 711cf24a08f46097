#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lancedb 0.40.0 (Lance 13.0.0), pyarrow 26.0.1.
#
# Expected: two processes that `merge_insert("key").when_not_matched_insert_all()` the same new key at the same moment
#   leave one row, and one of them is told num_inserted_rows=0. The connection has read_consistency_interval=0.
# What happens: both commit, both are told num_inserted_rows=1, and the key is there twice. The conflict is detected
#   only where the key column has the field metadata `lance-schema:unenforced-primary-key: true` and is not nullable.
#   And even then an insert that was planned on a version, and committed after later versions were cleaned away, is
#   compared with nothing: it doubles the key without an error.
#
# Output seen:
#   without primary key: 40 races, doubled in at least half of them: True
#   with primary key: 40 races, doubled 0
#   with primary key, versions in between removed: rows of the key 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet lancedb==0.40.0 pyarrow==26.0.1
cat > race.py <<'PY'
import multiprocessing, sys
from datetime import timedelta
from pathlib import Path

import lancedb
import pyarrow as pa

RACES = 40


def schema(keyed):
    metadata = {"lance-schema:unenforced-primary-key": "true"} if keyed else None
    return pa.schema([pa.field("key", pa.string(), nullable=False, metadata=metadata), ("who", pa.int64())])


def insert(table, keyed, key, who):
    rows = pa.table({"key": [key], "who": [who]}, schema=schema(keyed))
    return table.merge_insert("key").when_not_matched_insert_all().execute(rows).num_inserted_rows


def work(folder, keyed, who, barrier):
    table = lancedb.connect(folder, read_consistency_interval=timedelta(0)).open_table("t")
    for race in range(RACES):
        barrier.wait(60)
        insert(table, keyed, f"k{race}", who)


def doubled(folder, keyed):
    table = lancedb.connect(folder).create_table("t", schema=schema(keyed))
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    racers = [spawn.Process(target=work, args=(folder, keyed, who, barrier)) for who in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    table.checkout_latest()
    keys = table.to_arrow()["key"].to_pylist()
    return len(keys) - len(set(keys))


def stale(folder):
    newest = timedelta(0)
    table = lancedb.connect(folder, read_consistency_interval=newest).create_table("t", schema=schema(True))
    insert(table, True, "a", 0)
    # a connection that does not refresh plays a process that was stopped after it had planned its insert
    old = lancedb.connect(folder, session=lancedb.Session()).open_table("t")
    old.version
    insert(table, True, "c", 0)
    insert(table, True, "d", 0)
    for manifest in sorted(Path(folder, "t.lance", "_versions").glob("*.manifest"))[1:]:
        manifest.unlink()  # as cleanup_old_versions does
    insert(old, True, "c", 1)
    return table.count_rows("key = 'c'")


if __name__ == "__main__":
    without, with_key, rows = doubled("without", False), doubled("with", True), stale("stale")
    print(f"without primary key: {RACES} races, doubled in at least half of them: {without >= RACES // 2}")
    print(f"with primary key: {RACES} races, doubled {with_key}")
    print(f"with primary key, versions in between removed: rows of the key {rows}")
    sys.exit(not (without >= RACES // 2 and with_key == 0 and rows == 2))
PY
venv/bin/python race.py
