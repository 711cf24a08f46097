# SPDX-License-Identifier: Apache-2.0
"""Catalogue that goes back to an older state: newest manifests deleted, an older copy restored, a foreign table.

Acknowledged blocks are found again, or every entry point of the store reports the loss. Legal states are never an
error: a writer that died before its catalogue commit or before its mark, a writer next to an opening reader, deleted
documents.
"""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longmem.errors import CorruptionError, MissingBlockError, StoreError
from longmem.model.longmem import LongMem
from longmem.store.config import MemoryStore
from longmem.store.lance import acknowledged, maintenance
from longmem.store.lance.acknowledged import FOLDER, HINT, CommitMark, newest_version
from longmem.store.lance.manifest import DELETIONS
from longmem.store.lance.repair import recover
from longmem.store.lance.store import LanceMemoryStore
from longmem.types import DocumentKey
from tests.blocks import IDENTITY, KEY, assert_same, make_block

OTHER = DocumentKey("default", "other")
NUM_BLOCKS = 5
LOST = "has lost writes that were acknowledged.*repair"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses, which wait for a slow network file system."""
    monkeypatch.setattr(acknowledged, "_PAUSES_S", ())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return stores that tests copy: creating one costs more than most of the tests."""
    places = tmp_path_factory.mktemp("prepared")
    with MemoryStore.open(places / "memory.lance") as store:
        for index in range(NUM_BLOCKS):
            store.put(make_block(segment=index))
    with MemoryStore.open(places / "other.lance") as store:
        store.put(make_block(OTHER, identity=replace(IDENTITY, backbone="another")))
    with LanceMemoryStore(str(places / "trimmed.lance")) as store:
        store.put_all([make_block(segment=index) for index in range(NUM_BLOCKS)])
        store.trim(KEY, 1)
        store.put(make_block(OTHER))
    # otherwise the first put of the next writer would compact, and no row would be deleted any more
    (places / "trimmed.lance" / maintenance.STAMP).touch()
    with LanceMemoryStore(str(places / "turned.lance")) as store:
        store.put_all([make_block(segment=index) for index in reversed(range(NUM_BLOCKS))])
        store.trim(KEY, 1)
    return places


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared / "memory.lance", tmp_path / "memory.lance")


@pytest.fixture
def other_model(prepared: Path, tmp_path: Path) -> Path:
    """Return a store of one block by another backbone."""
    return shutil.copytree(prepared / "other.lance", tmp_path / "other.lance")


def versions(folder: Path) -> list[Path]:
    """Return manifests of the catalogue, newest first."""
    return sorted((folder / "catalogue.lance" / "_versions").glob("*.manifest"))


def delete_newest(folder: Path, count: int, hint: bool = True) -> None:
    for manifest in versions(folder)[:count]:
        manifest.unlink()
    if hint:
        (folder / "catalogue.lance" / "_versions" / HINT).unlink(missing_ok=True)


WAYS_IN: dict[str, Callable[[Path], object]] = {
    "open": MemoryStore.open,
    "verify": lambda folder: MemoryStore.open(folder).verify(),
    "read": lambda folder: MemoryStore.open(folder).read(KEY, 0, 1),
    "segments": lambda folder: MemoryStore.open(folder).document(KEY.document).as_read_only().segments,
    "put": lambda folder: MemoryStore.open(folder).put(make_block(segment=9)),
    "compact": lambda folder: LanceMemoryStore(str(folder)).compact(),
}


@pytest.mark.parametrize(("count", "with_hint"), [(1, False), (1, True), (2, True), (3, False)])
def test_newest_manifests_that_are_deleted_are_told_everywhere(folder: Path, count: int, with_hint: bool) -> None:
    delete_newest(folder, count, hint=with_hint)
    for use in WAYS_IN.values():
        with pytest.raises(CorruptionError, match=LOST):
            use(folder)
    report = recover(str(folder))
    assert any("1 blocks" in each or f"{count} blocks" in each for each in report.actions)
    assert any("moby-dick" in each and "write these documents again" in each for each in report.actions)
    assert report.num_blocks == NUM_BLOCKS - count
    with MemoryStore.open(folder) as store:
        for index in range(NUM_BLOCKS):
            assert store.put(make_block(segment=index)).duplicate == (index < NUM_BLOCKS - count)
            assert_same(store.read(KEY, index, index + 1)[0], make_block(segment=index))
        assert store.verify() == NUM_BLOCKS
    assert recover(str(folder)).actions == []


def test_newest_manifests_that_are_deleted_under_an_open_reader_are_told(folder: Path) -> None:
    with MemoryStore.open(folder) as reader:
        assert len(reader.read(KEY, 0, NUM_BLOCKS)) == NUM_BLOCKS
        delete_newest(folder, 2)
        for call in (lambda: reader.segments(KEY), lambda: reader.read(KEY, 0, 1), reader.documents, reader.num_bytes):
            with pytest.raises(CorruptionError, match=LOST):
                call()


def put_back_older(folder: Path, change: Callable[[LanceMemoryStore], object]) -> None:
    """Restore the catalogue from before a change, next to the newer payload."""
    copy = folder.parent / "copy"
    shutil.copytree(folder / "catalogue.lance", copy)
    with LanceMemoryStore(str(folder)) as store:
        change(store)
    shutil.rmtree(folder / "catalogue.lance")
    shutil.move(copy, folder / "catalogue.lance")


CHANGES: dict[str, Callable[[LanceMemoryStore], object]] = {
    "put": lambda store: store.put(make_block(segment=NUM_BLOCKS)),
    "delete": lambda store: store.delete(KEY),
    "trim": lambda store: store.trim(KEY, 2),
    "fork": lambda store: store.fork(KEY, OTHER),
    "compact": lambda store: store.compact(),
    "put again": lambda store: [store.put(make_block(segment=index)) for index in range(NUM_BLOCKS, NUM_BLOCKS + 3)],
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_older_copy_of_the_catalogue_is_told_and_repaired(folder: Path, change: str) -> None:
    put_back_older(folder, CHANGES[change])
    for use in WAYS_IN.values():
        with pytest.raises(CorruptionError, match=LOST):
            use(folder)
    recover(str(folder))
    with MemoryStore.open(folder) as store:
        store.put_all([make_block(segment=index) for index in range(NUM_BLOCKS + 3)])
        for index, block in enumerate(store.read(KEY, 0, NUM_BLOCKS + 3)):
            assert_same(block, make_block(segment=index))
        assert store.verify() == NUM_BLOCKS + 3
    assert recover(str(folder)).actions == []


def test_an_older_copy_that_has_grown_past_the_mark_is_told(folder: Path) -> None:
    """Check an older copy extended by a writer that ignores the mark, like one of an earlier version."""
    put_back_older(folder, CHANGES["put"])
    marks = folder / FOLDER
    marks.rename(folder.parent / "marks")
    with LanceMemoryStore(str(folder)) as store:
        for index in range(4):
            store.put(make_block(OTHER, index))
    shutil.rmtree(marks)
    (folder.parent / "marks").rename(marks)
    (mark,) = [CommitMark.of(path.name) for path in marks.iterdir()]
    assert mark is not None
    assert newest_version(folder / "catalogue.lance" / "_versions") > mark.version
    with pytest.raises(CorruptionError, match=r"is not the one that was acknowledged"):
        MemoryStore.open(folder)
    recover(str(folder))
    with MemoryStore.open(folder) as store:
        assert store.verify() == NUM_BLOCKS + 4


def test_a_flipped_byte_of_the_newest_manifest_is_told_and_what_it_named_is_kept(folder: Path) -> None:
    newest = versions(folder)[0]
    data = bytearray(newest.read_bytes())
    # the number of rows of the last fragment if present: most bytes can be flipped and still be read
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.raises(CorruptionError):
        MemoryStore.open(folder)
    recover(str(folder))
    with MemoryStore.open(folder) as store:
        assert store.verify() >= NUM_BLOCKS - 1


@pytest.fixture
def trimmed(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared / "trimmed.lance", tmp_path / "trimmed.lance")


@pytest.fixture
def swap(prepared: Path) -> Callable[[Path], None]:
    """Return a function that replaces the deletion file of `trimmed` (of segment 0) by a valid one of the last
    segment."""

    def replace_file(folder: Path) -> None:
        ours, theirs = (
            next((place / "catalogue.lance" / DELETIONS).iterdir()) for place in (folder, prepared / "turned.lance")
        )
        assert ours.stat().st_size == theirs.stat().st_size
        assert ours.read_bytes() != theirs.read_bytes()
        ours.write_bytes(theirs.read_bytes())

    return replace_file


def test_deletion_file_that_is_replaced_by_another_valid_one_is_told_everywhere_and_mended(
    trimmed: Path, swap: Callable[[Path], None]
) -> None:
    swap(trimmed)
    for use in WAYS_IN.values():
        with pytest.raises(CorruptionError, match=LOST):
            use(trimmed)
    report = recover(str(trimmed))
    assert (report.num_blocks, report.num_dropped) == (NUM_BLOCKS, 0)
    assert any("put back from its copy" in action for action in report.actions)
    with MemoryStore.open(trimmed) as store:
        assert [info.segment for info in store.segments(KEY)] == list(range(1, NUM_BLOCKS))
    assert recover(str(trimmed)).actions == []


@pytest.mark.parametrize("use", ["put", "delete", "compact", "segments", "verify"])
def test_deletion_file_that_is_replaced_under_an_open_store_is_told_before_anything_is_written(
    trimmed: Path, swap: Callable[[Path], None], use: str
) -> None:
    uses: dict[str, Callable[[LanceMemoryStore], object]] = {
        "put": lambda store: store.put(make_block(OTHER, 1)),
        "delete": lambda store: store.delete(OTHER),
        "compact": lambda store: store.compact(),
        "segments": lambda store: store.segments(KEY),
        "verify": lambda store: store.verify(),
    }
    with LanceMemoryStore(str(trimmed)) as store:
        store.put(make_block(OTHER, 5))
        newest = versions(trimmed)[0]
        swap(trimmed)
        with pytest.raises(CorruptionError, match=LOST):
            uses[use](store)
    assert versions(trimmed)[0] == newest


def test_deletion_file_that_is_replaced_without_a_copy_is_told_by_the_repair(
    trimmed: Path, swap: Callable[[Path], None]
) -> None:
    swap(trimmed)
    shutil.rmtree(trimmed / FOLDER / "deletions")
    report = recover(str(trimmed))
    assert any("deleted blocks may be back" in action for action in report.actions)
    with MemoryStore.open(trimmed) as store:
        assert store.verify() == report.num_blocks
    assert recover(str(trimmed)).actions == []


def test_deletion_file_of_a_trim_that_died_before_its_mark_is_covered_by_the_next_write(trimmed: Path) -> None:
    def dies(reached: str) -> None:
        if reached == "trim:catalogue":
            raise KeyboardInterrupt

    with LanceMemoryStore(str(trimmed), dies) as store, pytest.raises(KeyboardInterrupt):
        store.trim(KEY, 2)
    with MemoryStore.open(trimmed) as store:
        assert store.verify() == NUM_BLOCKS - 1
        store.put(make_block(OTHER, 1))
    newest = max((trimmed / "catalogue.lance" / DELETIONS).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match=LOST):
        MemoryStore.open(trimmed)


def test_copies_of_deletion_files_go_with_what_they_are_of(trimmed: Path) -> None:
    copies, files = trimmed / FOLDER / "deletions", trimmed / "catalogue.lance" / DELETIONS
    with LanceMemoryStore(str(trimmed)) as store:
        for segment in range(2, 4):
            store.trim(KEY, segment)
        # its own for the newest version, and that of the previous writer
        assert len(list(copies.iterdir())) == 2
        store.compact()
        assert len(list(copies.iterdir())) == 1
        for old in files.iterdir():
            # a compaction does it after ten minutes
            old.unlink()
        store.compact()
        assert list(copies.iterdir()) == []
        assert store.verify() == NUM_BLOCKS - 2


def test_a_lost_commit_of_a_store_without_a_record_is_told_by_the_hint(folder: Path) -> None:
    shutil.rmtree(folder / FOLDER)
    delete_newest(folder, 2, hint=False)
    with pytest.raises(CorruptionError, match=LOST):
        MemoryStore.open(folder)
    assert recover(str(folder)).num_blocks == NUM_BLOCKS - 2
    with MemoryStore.open(folder) as store:
        assert store.verify() == NUM_BLOCKS - 2


def test_a_text_that_follows_a_document_with_lost_commits_is_an_error(
    tmp_path: Path, small_model: Callable[..., LongMem]
) -> None:
    model = small_model()
    place = tmp_path / "memory.lance"
    with MemoryStore.open(place) as store:
        for name in ("a", "b"):
            model.score("one two three four five six seven eight nine ten " * 8, memory=store.document(name))
        held = store.document("b")
        delete_newest(place, 1)
        with pytest.raises(CorruptionError, match=LOST):
            model.score("and then", memory=held.as_read_only())
        with pytest.raises(CorruptionError, match=LOST):
            model.generate("and then", memory=held, max_new_tokens=2)
    with pytest.raises(CorruptionError, match=LOST):
        MemoryStore.open(place)


# --- legal states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["put:begin", "put:payload", "put:payload-sync", "put:catalogue", "put:catalogue-sync", "put:acknowledged"]
)
def test_a_writer_that_dies_at_any_step_leaves_no_lost_commit(folder: Path, step: str) -> None:
    def dies(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    with LanceMemoryStore(str(folder), dies) as store, pytest.raises(KeyboardInterrupt):
        store.put(make_block(segment=NUM_BLOCKS))
    with MemoryStore.open(folder) as store:
        assert store.verify() in (NUM_BLOCKS, NUM_BLOCKS + 1)
        store.put(make_block(segment=NUM_BLOCKS))
        assert store.verify() == NUM_BLOCKS + 1
    assert recover(str(folder)).actions == []


def test_a_replay_of_a_put_that_died_before_its_mark_is_acknowledged(folder: Path) -> None:
    def dies(reached: str) -> None:
        if reached == "put:catalogue":
            raise KeyboardInterrupt

    with LanceMemoryStore(str(folder), dies) as store, pytest.raises(KeyboardInterrupt):
        store.put(make_block(segment=NUM_BLOCKS))
    with MemoryStore.open(folder) as store:
        assert store.put(make_block(segment=NUM_BLOCKS)).duplicate
    delete_newest(folder, 1)
    with pytest.raises(CorruptionError, match=LOST):
        MemoryStore.open(folder)


def test_open_during_writes_finds_no_lost_commit(folder: Path) -> None:
    """Open and read stores while puts, deletes and compactions go on."""
    done = threading.Event()
    errors: list[BaseException] = []

    def write(key: DocumentKey) -> None:
        try:
            with LanceMemoryStore(str(folder)) as store:
                for index in range(12):
                    store.put(make_block(key, index))
                    if index % 4 == 3:
                        store.compact()
                        store.delete(key)
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)
        finally:
            done.set()

    writers = [threading.Thread(target=write, args=(DocumentKey("n", name),)) for name in "ab"]
    for writer in writers:
        writer.start()
    opened = 0
    while not done.is_set() or any(writer.is_alive() for writer in writers):
        with MemoryStore.open(folder) as store:
            assert [block.segment for block in store.read(KEY, 0, NUM_BLOCKS)] == list(range(NUM_BLOCKS))
            assert len(store.segments(KEY)) == NUM_BLOCKS
        opened += 1
    for writer in writers:
        writer.join()
    assert errors == []
    assert opened > 3


def test_a_store_without_a_record_opens_and_gains_it_by_the_next_write(folder: Path) -> None:
    shutil.rmtree(folder / FOLDER)
    with MemoryStore.open(folder) as store:
        assert store.verify() == NUM_BLOCKS
        assert not (folder / FOLDER).exists()
        store.put(make_block(segment=NUM_BLOCKS))
    delete_newest(folder, 1)
    with pytest.raises(CorruptionError, match=LOST):
        MemoryStore.open(folder)


def test_one_mark_is_kept_for_many_commits_of_many_writers(folder: Path) -> None:
    for index in range(3):
        with MemoryStore.open(folder) as store:
            store.put(make_block(OTHER, index))
    assert len(list((folder / FOLDER).iterdir())) == 1


def test_a_copy_of_the_whole_store_opens_anywhere(folder: Path, tmp_path: Path) -> None:
    with MemoryStore.open(folder) as store:
        store.delete(KEY)
        store.put(make_block(OTHER))
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path)
    with MemoryStore.open(tmp_path / "copy") as store:
        assert store.documents() == [OTHER]
        assert store.verify() == 1


def test_a_mark_that_cannot_be_written_is_an_error_and_the_replay_is_not(folder: Path) -> None:
    with MemoryStore.open(folder) as store:
        shutil.rmtree(folder / FOLDER)
        (folder / FOLDER).write_text("a file in its place")
        with pytest.raises(StoreError, match=r"write it again|cannot read"):
            store.put(make_block(segment=NUM_BLOCKS))
        (folder / FOLDER).unlink()
        store.put(make_block(segment=NUM_BLOCKS))
        assert store.verify() == NUM_BLOCKS + 1


# --- another store's fingerprint ----------------------------------------------------------------------------------


@pytest.fixture
def foreign(folder: Path, other_model: Path) -> Path:
    """Return the store of `folder` with the identity of a store of another backbone."""
    shutil.rmtree(folder / "identity.lance")
    shutil.copytree(other_model / "identity.lance", folder / "identity.lance")
    return folder


def test_identity_of_another_store_is_told_and_repaired(foreign: Path) -> None:
    for use in WAYS_IN.values():
        with pytest.raises(CorruptionError, match=r"written by another model.*backbone: 'another' != 'b'.*repair"):
            use(foreign)
    report = recover(str(foreign))
    assert (report.num_blocks, report.num_dropped) == (NUM_BLOCKS, 0)
    assert any("that of another store" in action for action in report.actions)
    with MemoryStore.open(foreign) as store:
        assert store.fingerprint() == IDENTITY
        assert store.verify() == NUM_BLOCKS
    assert recover(str(foreign)).actions == []


def test_identity_that_is_swapped_under_an_open_store_is_told_by_verify(folder: Path, other_model: Path) -> None:
    with MemoryStore.open(folder) as store:
        shutil.rmtree(folder / "identity.lance")
        shutil.copytree(other_model / "identity.lance", folder / "identity.lance")
        with pytest.raises(CorruptionError, match="another"):
            store.verify()


def test_identity_that_has_lost_its_rows_is_told_and_repaired(folder: Path) -> None:
    newest = min((folder / "identity.lance" / "_versions").glob("*.manifest"))
    newest.unlink()
    (newest.parent / HINT).unlink(missing_ok=True)
    with pytest.raises(CorruptionError, match="lost its fingerprint"):
        MemoryStore.open(folder)
    assert recover(str(folder)).num_blocks == NUM_BLOCKS
    with MemoryStore.open(folder) as store:
        assert store.fingerprint() == IDENTITY


def test_a_payload_table_of_another_model_is_told_and_dropped(folder: Path, other_model: Path) -> None:
    """Check one foreign table of several: the store stays usable, and only the foreign blocks are an error."""
    with MemoryStore.open(folder) as store:
        store.put(make_block(OTHER))
    with LanceMemoryStore(str(other_model)) as other:
        (theirs,) = other._payload_tables()
        row = other._catalogue()
    (other_model / f"{theirs}.lance").rename(folder / f"{theirs}.lance")
    with LanceMemoryStore(str(folder)) as store:
        store._database.delete("catalogue", row.schema, "document = 'other'")
        store._database.append("catalogue", row)
        store._acknowledge()
    report = recover(str(folder))
    assert (report.num_blocks, report.num_dropped) == (NUM_BLOCKS, 1)
    assert any("another model" in action for action in report.actions)
    with MemoryStore.open(folder) as store, pytest.raises(MissingBlockError):
        store.read(OTHER, 0, 1)
