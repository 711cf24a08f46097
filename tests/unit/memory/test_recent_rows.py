# SPDX-License-Identifier: Apache-2.0
"""Recently written blocks are read without the disk; only the catalogue decides whether they exist."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from longmem.errors import CorruptionError, MissingBlockError
from longmem.store.config import StoreSettings
from longmem.store.lance.codec import to_rows
from longmem.store.lance.recent_rows import RecentRows
from longmem.store.lance.store import LanceMemoryStore
from tests.blocks import KEY, make_block


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "memory.lance"


def remove_payload(folder: Path) -> None:
    for table in folder.glob("p-*.lance"):
        shutil.rmtree(table)


def test_the_oldest_write_goes_first_and_no_byte_too_many_stays() -> None:
    rows = to_rows(make_block(), 0)
    recent = RecentRows(max_bytes=3 * rows.nbytes)
    for write in range(5):
        recent.keep(write, rows)
    assert list(recent.of([0, 1, 2, 3, 4])) == [2, 3, 4]
    recent.keep(5, to_rows(make_block(segment=1), 5))
    assert 2 not in recent.of([2, 5])
    assert 5 in recent.of([2, 5])
    recent.clear()
    assert recent.of([3, 4, 5]) == {}


def test_recent_blocks_that_are_read_together_are_not_copied(folder: Path) -> None:
    with LanceMemoryStore(str(folder)) as store:
        for segment in range(3):
            store.put(make_block(segment=segment))
        together, alone = store.read(KEY, 0, 3), [store.read(KEY, segment, segment + 1)[0] for segment in range(3)]
        for block, other in zip(together, alone, strict=True):
            assert np.shares_memory(block.keys, other.keys)
            assert np.shares_memory(block.values, other.values)


def test_a_write_larger_than_the_bound_is_not_kept() -> None:
    recent = RecentRows(max_bytes=10)
    recent.keep(0, to_rows(make_block(), 0))
    assert recent.of([0]) == {}


def test_who_opens_a_store_decides_how_much_it_keeps(folder: Path) -> None:
    settings = StoreSettings(str(folder))
    block = make_block()
    rows = to_rows(block, 0)
    with settings.open(recent_bytes=2 * rows.nbytes) as store:
        for segment in range(3):
            store.put(make_block(segment=segment))
        remove_payload(folder)
        assert [found.segment for found in store.read(KEY, 1, 3)] == [1, 2]
        with pytest.raises(CorruptionError):
            store.read(KEY, 0, 1)


def test_an_expected_put_imports_lancedb_and_writes_nothing(folder: Path) -> None:
    code = (
        "import sys; from longmem.store.config import StoreSettings; store = StoreSettings(sys.argv[1]).open(); "
        "before = 'lancedb' in sys.modules; store.expect_puts(); print(before, 'lancedb' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "True"]
    assert not folder.exists()


def test_what_this_process_wrote_is_read_without_the_disk(folder: Path) -> None:
    blocks = [make_block(segment=segment) for segment in range(3)]
    with LanceMemoryStore(str(folder)) as store:
        for block in blocks:
            store.put(block)
        remove_payload(folder)
        for found, block in zip(store.read(KEY, 0, 3), blocks, strict=True):
            assert found.checksum() == block.checksum()
        with pytest.raises(CorruptionError):
            store.verify()
        assert len(store.damaged_blocks()) == 3
    with LanceMemoryStore(str(folder)) as store, pytest.raises(CorruptionError):
        store.read(KEY, 0, 3)


def test_recent_and_older_blocks_are_read_in_order(folder: Path) -> None:
    blocks = [make_block(segment=segment) for segment in range(6)]
    with LanceMemoryStore(str(folder)) as store:
        for block in (blocks[0], blocks[3], blocks[5]):
            store.put(block)
    with LanceMemoryStore(str(folder)) as store:
        for block in (blocks[1], blocks[4], blocks[2]):
            store.put(block)
        for found, block in zip(store.read(KEY, 0, 6), blocks, strict=True):
            assert found.checksum() == block.checksum()


def test_what_the_writer_does_to_its_arrays_afterwards_changes_nothing(folder: Path) -> None:
    block = make_block()
    kept, keys = block.checksum(), block.keys
    with LanceMemoryStore(str(folder)) as store:
        store.put(block)
        keys.flags.writeable = True
        keys[:] = np.zeros_like(keys)
        (found,) = store.read(KEY, 0, 1)
        assert found.checksum() == kept


def test_what_another_process_deletes_is_gone_at_once(folder: Path) -> None:
    with LanceMemoryStore(str(folder)) as store, LanceMemoryStore(str(folder)) as other:
        store.put(make_block())
        other.delete(KEY)
        with pytest.raises(MissingBlockError):
            store.read(KEY, 0, 1)
