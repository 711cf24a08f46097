# SPDX-License-Identifier: Apache-2.0
"""Several writers that put, fork or conflict at one moment: exactly one wins, and each gets the right answer."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from longmem.errors import CorruptionError
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import IN_MEMORY, MemoryStore
from longmem.store.lance.catalogue import CATALOGUE, CATALOGUE_SCHEMA
from longmem.store.lance.identity import IDENTITY, IDENTITY_SCHEMA
from longmem.store.lance.repair import recover
from longmem.store.lance.store import LanceMemoryStore
from longmem.types import DocumentKey, Fingerprint
from tests.blocks import KEY, assert_same, make_block
from tests.racing import (
    Racers,
    check_receipts,
    contested,
    create_stores,
    fork_into_one,
    put_each_alone,
    put_groups,
    put_other_tokens,
    race_in_threads,
    racers,
)

pytestmark = pytest.mark.thorough

SEGMENTS = 24
GROUPS, SIZE = 40, 6
"""Number and size of the groups. Both processes put all but one key of a group in one round."""
CONTESTED = 200
CREATED = 40
CONFLICTS = 10
FORKS = 8
GROUPED = DocumentKey("default", "groups")


@pytest.fixture(scope="module")
def processes() -> Iterator[Racers]:
    with racers(2) as found:
        yield found


@pytest.fixture(params=["memory", "lance"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AbstractMemoryStore]:
    uri = IN_MEMORY if request.param == "memory" else str(tmp_path / "memory.lance")
    with MemoryStore.open(uri) as opened:
        yield opened


def as_stored_before(uri: str) -> None:
    """Convert tables to the form that longmem wrote before they had a primary key."""
    with LanceMemoryStore(uri) as store:
        for name, schema in ((CATALOGUE, CATALOGUE_SCHEMA), (IDENTITY, IDENTITY_SCHEMA)):
            store._database.create_if_absent(name, pa.schema([pa.field(each.name, each.type) for each in schema]))


@pytest.mark.parametrize("made_by", ["this version", "an earlier version"])
def test_put_by_two_processes_at_once_has_one_winner(tmp_path: Path, processes: Racers, made_by: str) -> None:
    uri, num_segments = str(tmp_path / "memory.lance"), SEGMENTS if made_by == "this version" else SEGMENTS // 4
    if made_by != "this version":
        as_stored_before(uri)
    # the first race also creates the store
    found = processes.race(uri, partial(put_each_alone, num_segments))
    assert contested(found, num_segments) == num_segments
    check_receipts(found, set(range(num_segments)))
    with LanceMemoryStore(uri) as store:
        assert store._catalogue().num_rows == num_segments
        assert store.verify() == num_segments
        assert store.num_bytes() == num_segments * make_block().num_bytes
        assert store._database.has_key(CATALOGUE, CATALOGUE_SCHEMA.names, "block")
        assert store._database.select(IDENTITY, IDENTITY_SCHEMA).num_rows == 2


def test_put_of_groups_that_overlap_has_one_winner_for_each_block(tmp_path: Path, processes: Racers) -> None:
    uri = str(tmp_path / "memory.lance")
    found = processes.race(uri, partial(put_groups, GROUPS, SIZE))
    assert contested(found, GROUPS) >= CONTESTED
    held = {each.segment for receipts in found for each in receipts}
    check_receipts(found, held)
    with LanceMemoryStore(uri) as store:
        assert store._catalogue().num_rows == len(held) == store.verify()
        for segment in held:
            assert_same(store.read(GROUPED, segment, segment + 1)[0], make_block(GROUPED, segment))


def test_put_of_other_tokens_at_once_is_a_conflict_for_all_but_one(tmp_path: Path, processes: Racers) -> None:
    uri = str(tmp_path / "memory.lance")
    for outcomes in zip(*processes.race(uri, partial(put_other_tokens, CONFLICTS)), strict=True):
        assert sorted(outcomes) == ["ConflictError", "new"]
    with LanceMemoryStore(uri) as store:
        assert store._catalogue().num_rows == CONFLICTS == store.verify()


def test_fork_into_one_target_at_once_has_one_winner(tmp_path: Path, processes: Racers) -> None:
    uri = str(tmp_path / "memory.lance")
    with LanceMemoryStore(uri) as store:
        store.put_all([make_block(segment=index) for index in range(3)])
    for outcomes in zip(*processes.race(uri, partial(fork_into_one, FORKS)), strict=True):
        assert sorted(outcomes) == ["3", "ConflictError"]
    with LanceMemoryStore(uri) as store:
        assert store._catalogue().num_rows == 3 * (FORKS + 1) == store.verify()


def test_put_by_threads_at_once_has_one_winner(store: AbstractMemoryStore) -> None:
    check_receipts(race_in_threads(store, partial(put_each_alone, 20)), set(range(20)))
    found = race_in_threads(store, partial(put_groups, 5, SIZE))
    check_receipts(found, {each.segment for receipts in found for each in receipts})
    for outcomes in zip(*race_in_threads(store, partial(put_other_tokens, 5)), strict=True):
        assert sorted(outcomes) == ["ConflictError", "ConflictError", "new"]
    for outcomes in zip(*race_in_threads(store, partial(fork_into_one, 5)), strict=True):
        assert sorted(outcomes) == ["20", "ConflictError", "ConflictError"]
    assert store.num_bytes() == (20 + len(store.segments(GROUPED)) + 5) * make_block().num_bytes


def test_a_store_that_another_process_creates_is_empty_or_complete(tmp_path: Path, processes: Racers) -> None:
    assert processes.race(str(tmp_path), partial(create_stores, CREATED)) == [[], []]


@pytest.mark.parametrize("table", [CATALOGUE, IDENTITY])
def test_a_table_without_a_version_is_absent_and_the_next_put_creates_it(tmp_path: Path, table: str) -> None:
    # the state between two system calls of a creation, and after a writer that died there
    (tmp_path / f"{table}.lance" / "_versions").mkdir(parents=True)
    with LanceMemoryStore(str(tmp_path)) as store:
        assert store.fingerprint() is None
        assert store.documents() == []
        store.put(make_block())
    with LanceMemoryStore(str(tmp_path)) as store:
        assert store.verify() == 1


def test_a_first_put_between_reading_fingerprint_and_catalogue_is_no_damage(tmp_path: Path) -> None:
    with LanceMemoryStore(str(tmp_path)) as writer:
        writer._database.create_if_absent(CATALOGUE, CATALOGUE_SCHEMA)
        writer._database.create_if_absent(IDENTITY, IDENTITY_SCHEMA)

        class Slow(LanceMemoryStore):
            def _identity_rows(self) -> Fingerprint | None:
                found = super()._identity_rows()
                if found is None:
                    writer.put(make_block())
                return found

        with Slow(str(tmp_path)) as reader:
            assert reader.fingerprint() == make_block().fingerprint


@pytest.mark.parametrize("table", [CATALOGUE, IDENTITY])
def test_a_table_that_lost_its_versions_beside_blocks_is_damage(tmp_path: Path, table: str) -> None:
    with LanceMemoryStore(str(tmp_path)) as store:
        store.put(make_block())
    for manifest in (tmp_path / f"{table}.lance" / "_versions").iterdir():
        manifest.unlink()
    with pytest.raises(CorruptionError):
        LanceMemoryStore(str(tmp_path))


def test_fork_concurrent_with_put_into_target_keeps_only_the_put(tmp_path: Path) -> None:
    uri, target = str(tmp_path / "memory.lance"), DocumentKey("default", "target")
    with LanceMemoryStore(uri) as other:
        other.put_all([make_block(segment=index) for index in range(3)])

        class Racing(LanceMemoryStore):
            def _sync(self, table: str) -> None:
                # after the fork has checked that its target is free
                other.put(make_block(target, 1, seed=7))

        with Racing(uri) as racing, pytest.raises(ValueError, match="exists"):
            racing.fork(KEY, target)
        assert [info.segment for info in other.segments(target)] == [1]
        assert_same(other.read(target, 1, 2)[0], make_block(target, 1, seed=7))
        assert other.verify() == 4


# --- concurrent writers of an earlier version ---------------------------------------------------------------------


def doubled_store(uri: str, other_tokens: bool) -> None:
    """Write a store in which both writers of segments 0 and 1 got the answer "new"."""
    as_stored_before(uri)
    with LanceMemoryStore(f"{uri}-2") as second, LanceMemoryStore(uri) as first:
        theirs = [make_block(segment=index, seed=3 if other_tokens else 0) for index in range(2)]
        second.put_all(theirs)
        rows = second._catalogue()
        first.put_all([make_block(segment=index) for index in range(3)])
        first._database.append(CATALOGUE, rows)
        for payload in second._payload_tables():
            (Path(f"{uri}-2") / f"{payload}.lance").rename(Path(uri) / f"{payload}.lance")
        first._acknowledge()


def test_doubled_rows_of_the_same_tokens_are_read_once_told_and_repaired(tmp_path: Path) -> None:
    uri = str(tmp_path / "memory.lance")
    doubled_store(uri, other_tokens=False)
    with LanceMemoryStore(uri) as store:
        assert [info.segment for info in store.segments(KEY)] == [0, 1, 2]
        for index, block in enumerate(store.read(KEY, 0, 3)):
            assert_same(block, make_block(segment=index))
        assert store.num_bytes() == 3 * make_block().num_bytes
        assert store.put(make_block(segment=1)).duplicate
        assert store.fork(KEY, DocumentKey("default", "copy")) == 3
        with pytest.raises(CorruptionError, match=r"2 segments are more than once.*moby-dick segment 0.*repair"):
            store.verify()
    report = recover(uri)
    assert (report.num_blocks, report.num_dropped) == (6, 0)
    assert sum("removed a second row" in action for action in report.actions) == 2
    with LanceMemoryStore(uri) as store:
        assert store._catalogue().num_rows == 6 == store.verify()
        assert store.delete(KEY) == 3
    assert recover(uri).actions == []


def test_doubled_rows_of_other_tokens_are_an_error_and_repaired(tmp_path: Path) -> None:
    uri = str(tmp_path / "memory.lance")
    doubled_store(uri, other_tokens=True)
    with LanceMemoryStore(uri) as store:
        assert_same(store.read(KEY, 2, 3)[0], make_block(segment=2))
        for call in (lambda: store.read(KEY, 0, 3), lambda: store.segments(KEY), store.verify):
            with pytest.raises(CorruptionError, match=r"twice|more than once"):
                call()
    report = recover(uri)
    assert sum("other tokens" in action for action in report.actions) == 2
    with LanceMemoryStore(uri) as store:
        assert store.verify() == 3
        # the row that was written first is kept
        for index, block in enumerate(store.read(KEY, 0, 3)):
            assert_same(block, make_block(segment=index))


def test_a_put_that_was_overtaken_while_it_was_stopped_withdraws_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check a race that Lance misses: it ignores another insert whose version is cleaned up.

    The pause is simulated: a put counts as slow at once, and the other row is appended past Lance's check.
    """
    uri = str(tmp_path / "memory.lance")
    with LanceMemoryStore(uri) as other:
        other.put_all([make_block(segment=index) for index in range(2)])
        row = other._catalogue("segment = 1")
        other._database.delete(CATALOGUE, CATALOGUE_SCHEMA, "segment = 1")

        def overtaken(step: str) -> None:
            if step == "put:catalogue":
                other._database.append(CATALOGUE, row)

        monkeypatch.setattr("longmem.store.lance.writer.UNSURE_S", -1.0)
        with LanceMemoryStore(uri, overtaken) as slow:
            assert slow.put(make_block(segment=1)).duplicate
        assert other._catalogue().num_rows == 2 == other.verify()
