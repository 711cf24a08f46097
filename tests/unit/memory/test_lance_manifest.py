# SPDX-License-Identifier: Apache-2.0
"""Names of deletion files parsed from manifests equal those of the files that Lance has written."""

from pathlib import Path

import pyarrow as pa
import pytest

from longmem.store.lance.manifest import DELETIONS, deletion_files
from longmem.store.lance.table import LanceDatabase

SCHEMA = pa.schema([("number", pa.int64())])


@pytest.mark.parametrize(("deleted", "suffix"), [(0, None), (3, ".arrow"), (15_000, ".bin")])
def test_deletion_files_of_a_manifest_are_those_on_the_disk(tmp_path: Path, deleted: int, suffix: str | None) -> None:
    database = LanceDatabase(str(tmp_path))
    database.create_if_absent("table", SCHEMA)
    for start in (0, 20_000):
        database.append("table", pa.table({"number": range(start, start + 20_000)}, schema=SCHEMA))
    if deleted:
        database.delete("table", SCHEMA, f"number % 20000 < {deleted}")
    table = tmp_path / "table.lance"
    newest = min((table / "_versions").glob("*.manifest"))
    names = deletion_files(newest.read_bytes())
    assert sorted(names) == sorted(path.name for path in (table / DELETIONS).glob("*"))
    assert {Path(name).suffix for name in names} == ({suffix} if suffix else set())
    assert len(names) == (2 if deleted else 0)


@pytest.mark.parametrize("data", [b"", b"LANC", bytes(40), bytes(36) + b"LANC", b"\xff" * 36 + b"LANC"])
def test_deletion_files_of_what_is_no_manifest_is_an_error_or_none(data: bytes) -> None:
    try:
        assert deletion_files(data) == []
    except ValueError as error:
        assert "not a Lance manifest" in str(error)  # noqa: PT017 - an empty message is a valid one
