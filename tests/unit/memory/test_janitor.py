# SPDX-License-Identifier: Apache-2.0
"""Leftovers of dead writers are removed when they are old; nothing else is removed."""

import os
import time
from pathlib import Path

import pytest

from longmem.errors import StoreError
from longmem.store.lance import maintenance
from longmem.store.lance.store import LanceMemoryStore
from longmem.types import DocumentKey
from tests.blocks import KEY, make_block

LEFT = {"data/.tmpA": 1000, "_versions/.tmpB": 20, "_transactions/.tmpC": 3}


def age(place: Path, seconds: float = 2 * maintenance.OLD_S) -> None:
    then = time.time() - seconds
    for path in [*place.rglob("*"), place]:
        os.utime(path, (then, then))


class Killed(Exception):
    """Exception that ends a put after its payload."""


def killed_put(folder: Path, key: DocumentKey) -> None:
    def on_step(step: str) -> None:
        if step == "put:payload":
            raise Killed

    with LanceMemoryStore(str(folder), on_step) as store, pytest.raises(Killed):
        store.put(make_block(key))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a store with one block, three temporary files, an orphaned table and a half-dropped one."""
    place = tmp_path / "memory.lance"
    with LanceMemoryStore(str(place)) as store:
        store.put(make_block())
    table = next(place.glob("p-*.lance"))
    for name, size in LEFT.items():
        (table / name).write_bytes(bytes(size))
    killed_put(place, DocumentKey("default", "orphan"))
    (place / ".dropped-1" / "data").mkdir(parents=True)
    (place / ".dropped-1" / "data" / "x.lance").write_bytes(bytes(500))
    return place


def num_left(folder: Path) -> int:
    return len([*folder.rglob(".tmp*"), *folder.glob("p-*.lance"), *folder.glob(".dropped-*")])


def test_the_young_stay_and_the_old_go(folder: Path) -> None:
    before = num_left(folder)
    with LanceMemoryStore(str(folder)) as store:
        assert store.compact() == maintenance.Swept()
        assert num_left(folder) == before == 3 + 2 + 1
        age(folder)
        swept = store.compact()
        assert (swept.num_files, swept.num_tables) == (3, 2)
        assert swept.num_bytes > sum(LEFT.values()) + 500
        assert num_left(folder) == 1
        assert store.verify() == 1
        assert store.compact() == maintenance.Swept()


def test_nothing_is_too_young_where_no_writer_lives(folder: Path) -> None:
    with LanceMemoryStore(str(folder)) as store:
        assert store.compact(0.0).num_tables == 2
        assert store.verify() == 1


def test_a_writer_sweeps_before_its_first_put_and_rarely(folder: Path) -> None:
    age(folder)
    with LanceMemoryStore(str(folder)) as reader:
        assert reader.verify() == 1
    assert num_left(folder) == 6
    with LanceMemoryStore(str(folder)) as store:
        store.put(make_block(segment=1))
    # the new writer has its own table
    assert num_left(folder) == 2
    killed_put(folder, DocumentKey("default", "orphan"))
    age(next(path for path in folder.glob("p-*") if path.stat().st_mtime > time.time() - 60))
    with LanceMemoryStore(str(folder)) as store:
        store.put(make_block(segment=2))
        assert store.verify() == 3
    assert num_left(folder) == 4


def test_a_put_that_slept_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a put that slept too long: its payload may be removed as an orphan, so no row may reference it."""
    folder = tmp_path / "memory.lance"
    now = time.time()

    def on_step(step: str) -> None:
        if step == "put:payload-sync":
            age(next(folder.glob("p-*.lance")))
            with LanceMemoryStore(str(folder)) as other:
                assert other.compact().num_tables == 1
            monkeypatch.setattr(time, "time", lambda: now + 2 * maintenance.OLD_S)

    with LanceMemoryStore(str(folder), on_step) as store, pytest.raises(StoreError, match="put it again"):
        store.put(make_block())
    with LanceMemoryStore(str(folder)) as store:
        assert store.documents() == []
        store.put(make_block())
        assert len(store.read(KEY, 0, 1)) == 1


# --- concurrent with a put, with any clock ------------------------------------------------------------------------


def remove(folder: Path, how: str) -> None:
    """Remove unreferenced payload like another process: as after a clock jump, or with its document."""
    with LanceMemoryStore(str(folder)) as other:
        if how == "sweep":
            other.compact(old_s=-1.0)
        else:
            other.delete(KEY)


@pytest.mark.parametrize("how", ["sweep", "delete"])
@pytest.mark.parametrize("step", ["put:payload", "put:payload-sync"])
def test_put_whose_payload_is_removed_meanwhile_raises_and_leaves_nothing(tmp_path: Path, how: str, step: str) -> None:
    folder = tmp_path / "memory.lance"
    removed = []

    def on_step(reached: str) -> None:
        if reached == step and not removed:
            removed.append(reached)
            remove(folder, how)

    with LanceMemoryStore(str(folder)) as first:
        first.put(make_block(DocumentKey("default", "other")))
    with LanceMemoryStore(str(folder), on_step) as store:
        with pytest.raises(StoreError, match="put it again"):
            store.put(make_block())
        assert store.segments(KEY) == []
        assert not store.put(make_block()).duplicate
        assert len(store.read(KEY, 0, 1)) == store.verify(KEY) == 1


@pytest.mark.parametrize("how", ["sweep", "delete"])
def test_removal_of_a_payload_that_a_put_names_meanwhile_keeps_it(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "memory.lance"
    killed_put(folder, KEY)
    with LanceMemoryStore(str(folder)) as writer:
        # the table exists and no row names it
        payload = next(folder.glob("p-*.lance")).stem
        monkeypatch.setattr(writer, "_epoch", payload.rpartition("-")[2])
        rename = Path.rename

        def put_first(path: Path, target: Path) -> Path:
            if path.stem == payload and not writer.segments(KEY):
                assert not writer.put(make_block()).duplicate
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", put_first)
        remove(folder, how)
        monkeypatch.undo()
    with LanceMemoryStore(str(folder)) as store:
        assert len(store.read(KEY, 0, 1)) == store.verify() == 1


def test_put_after_another_process_deleted_the_document_stores_it(tmp_path: Path) -> None:
    folder = tmp_path / "memory.lance"
    with LanceMemoryStore(str(folder)) as store:
        store.put(make_block())
        remove(folder, "delete")
        assert not store.put(make_block()).duplicate
        assert not store.put(make_block(segment=1)).duplicate
        assert len(store.read(KEY, 0, 2)) == store.verify() == 2
