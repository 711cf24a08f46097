# SPDX-License-Identifier: Apache-2.0
"""Damage of every kind: reads and `verify` raise CorruptionError, never return numbers and never an empty store.

`recover` restores the store to its last good state and reports its steps; lost blocks can be written again.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from longmem.errors import CorruptionError, MissingBlockError
from longmem.store.config import MemoryStore
from longmem.store.lance.connection import shared_session
from longmem.store.lance.repair import recover
from longmem.store.lance.store import LanceMemoryStore
from longmem.types import DocumentKey
from tests.blocks import KEY, assert_same, make_block

pytestmark = pytest.mark.thorough

OTHER = DocumentKey("default", "other")
NUM_BLOCKS = 3
TABLES = {"catalogue": "catalogue.lance", "identity": "identity.lance", "payload": "p-*.lance"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a store with three blocks of one document and one of another."""
    place = tmp_path / "memory.lance"
    with MemoryStore.open(place) as store:
        store.put(make_block(OTHER, seed=5))
        for index in range(NUM_BLOCKS):
            store.put(make_block(segment=index))
    return place


def table_of(folder: Path, name: str) -> Path:
    """Return the path of a table; for the payload, that of `KEY`."""
    with MemoryStore.open(folder) as store:
        own = store._payload_tables(f"document = '{KEY.document}'")  # type: ignore[attr-defined]
    return folder / (f"{own.pop()}.lance" if name == "payload" else TABLES[name])


def newest_manifest(table: Path) -> Path:
    return sorted((table / "_versions").glob("*.manifest"))[0]


def newest_data(table: Path) -> Path:
    return max((table / "data").glob("*.lance"), key=lambda path: path.stat().st_mtime_ns)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "manifest-empty": lambda table: empty(newest_manifest(table)),
    "manifest-half": lambda table: half(newest_manifest(table)),
    "manifest-zeros": lambda table: zeros(newest_manifest(table)),
    "data-missing": lambda table: newest_data(table).unlink(),
    "data-half": lambda table: half(newest_data(table)),
    "data-empty": lambda table: empty(newest_data(table)),
    "data-zeros": lambda table: zeros(newest_data(table)),
    "table-missing": shutil.rmtree,
    "manifests-missing": lambda table: shutil.rmtree(table / "_versions"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", TABLES)
def test_damage_is_told_and_repaired(folder: Path, name: str, damage: str) -> None:
    DAMAGES[damage](table_of(folder, name))
    # Lance caches files that it has read: reopen like another process
    shared_session.cache_clear()
    with pytest.raises(CorruptionError, match="repair"), MemoryStore.open(folder) as store:
        store.read(KEY, 0, NUM_BLOCKS)
    with pytest.raises(CorruptionError), MemoryStore.open(folder) as store:
        store.verify()
    # a job that reads it writes nothing over it
    with pytest.raises(CorruptionError), MemoryStore.open(folder) as store:  # noqa: PT012 - whichever reads it first
        store.put(make_block(segment=NUM_BLOCKS))
        store.verify()

    report = recover(str(folder))
    assert report.actions
    with MemoryStore.open(folder) as store:
        held = {(info.key, info.segment) for key in store.documents() for info in store.segments(key)}
        assert store.verify() == report.num_blocks == len(held)
        if name == "payload":
            # another document is in another table
            assert_same(store.read(OTHER, 0, 1)[0], make_block(OTHER, seed=5))
        if name == "identity" and damage != "table-missing":
            assert report.num_dropped == 0
        for index in range(NUM_BLOCKS):
            receipt = store.put(make_block(segment=index))
            assert receipt.duplicate == ((KEY, index) in held)
            assert_same(store.read(KEY, index, index + 1)[0], make_block(segment=index))
    if damage.startswith("manifest"):
        assert list((folder / "damaged").rglob("*"))
    assert recover(str(folder)).actions == []


def test_a_lost_fingerprint_is_found_in_the_payload(folder: Path) -> None:
    shutil.rmtree(folder / "identity.lance")
    report = recover(str(folder))
    assert report.num_blocks == NUM_BLOCKS + 1
    assert any("restored the fingerprint" in action for action in report.actions)


def test_newest_versions_go_one_by_one(folder: Path) -> None:
    for manifest in sorted((folder / "catalogue.lance" / "_versions").glob("*.manifest"))[:2]:
        zeros(manifest)
    report = recover(str(folder))
    assert report.num_blocks == 2
    assert any("before 2 damaged" in action for action in report.actions)
    with MemoryStore.open(folder) as store:
        assert [info.segment for info in store.segments(KEY)] == [0]
        assert not store.put(make_block(segment=1)).duplicate


def test_an_old_version_that_is_damaged_is_told_and_repaired(folder: Path) -> None:
    """Check damage that reads never touch: they succeed, `verify` predicts the failing compaction, repair loses
    nothing."""
    oldest = sorted((folder / "catalogue.lance" / "_versions").glob("*.manifest"))[-1]
    zeros(oldest)
    with LanceMemoryStore(str(folder)) as store:
        assert len(store.read(KEY, 0, NUM_BLOCKS)) == NUM_BLOCKS
        with pytest.raises(CorruptionError, match="repair"):
            store.compact()
    with (
        LanceMemoryStore(str(folder)) as store,
        pytest.raises(CorruptionError, match=r"next write.*would fail.*repair"),
    ):
        store.verify()
    report = recover(str(folder))
    assert (report.num_blocks, report.num_dropped) == (NUM_BLOCKS + 1, 0)
    assert any("rewritten" in action for action in report.actions)
    # the state left by a repair that dies before its last step
    (folder / "catalogue.lance").rename(folder / "rebuilt.lance")
    assert recover(str(folder)).num_blocks == NUM_BLOCKS + 1
    with LanceMemoryStore(str(folder)) as store:
        store.put(make_block(segment=NUM_BLOCKS))
        store.compact()
        assert store.verify() == NUM_BLOCKS + 2
    assert recover(str(folder)).actions == []


def test_a_flipped_bit_of_a_name_is_told(folder: Path) -> None:
    found = 0
    for file in (folder / "catalogue.lance" / "data").glob("*.lance"):
        data = file.read_bytes()
        if (at := data.find(KEY.document.encode())) >= 0:
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            found += 1
    assert found == NUM_BLOCKS
    with MemoryStore.open(folder) as store:
        with pytest.raises(CorruptionError, match="do not belong together"):
            store.segments(KEY)
        with pytest.raises(CorruptionError):
            store.verify()
    report = recover(str(folder))
    assert (report.num_blocks, report.num_dropped) == (1, NUM_BLOCKS)


@pytest.mark.parametrize("seed", [*range(10), 22])
def test_any_flipped_bit_gives_the_right_bytes_or_an_error(folder: Path, seed: int) -> None:
    """Flip a bit anywhere in any file: readable blocks are unchanged, and `recover` leaves a store that verifies."""
    chance = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    file = chance.choice(files)
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)

    def check() -> int:
        num_right = 0
        with MemoryStore.open(folder) as store:
            for index in range(NUM_BLOCKS):
                try:
                    (block,) = store.read(KEY, index, index + 1)
                except (CorruptionError, MissingBlockError):
                    continue
                assert_same(block, make_block(segment=index))
                num_right += 1
        return num_right

    with suppress(CorruptionError):
        check()
    recover(str(folder))
    check()
    with MemoryStore.open(folder) as store:
        store.verify()
        for index in range(NUM_BLOCKS):
            store.put(make_block(segment=index))
        assert check() == NUM_BLOCKS


@pytest.mark.parametrize(("name", "kind"), [("PanicException", BaseException), ("RustPanic", Exception)])
def test_a_panic_of_lance_is_damage(name: str, kind: type[BaseException]) -> None:
    """Check both exceptions: which one a damaged file raises depends on the thread that reads it."""
    from longmem.store.lance.table import _translated

    panic = type(name, (kind,), {})
    with pytest.raises(CorruptionError, match="repair"), _translated("reading table x"):
        raise panic("rust future panicked")
