# SPDX-License-Identifier: Apache-2.0
"""Simulated power cut of a store: only fsynced bytes and names survive.

A fsynced file has the bytes of that moment. A file that was not fsynced is full of zeros, or missing where its folder
was not fsynced after its creation. That is the worst behaviour of a journaling file system.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from longmem.errors import CorruptionError, StoreError
from longmem.store.lance.fsync import Durability
from longmem.store.lance.repair import recover
from longmem.store.lance.store import LanceMemoryStore
from longmem.store.lance.writer import COMPACT_EVERY, STEPS
from tests.blocks import KEY, assert_same, make_block

pytestmark = pytest.mark.thorough


@dataclass
class Disk:
    """Bytes that reached the disk, by inode: a rename or a second name does not change them."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[Path, dict[str, int]] = field(default_factory=dict)
    """Names (and their inodes) of a folder at its last fsync."""
    fails: bool = False
    num_fsyncs: int = 0

    def fsync(self, descriptor: int) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")
        self.num_fsyncs += 1
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self.folders[path] = {each.name: each.stat().st_ino for each in path.iterdir()}
        else:
            self.files[os.fstat(descriptor).st_ino] = path.read_bytes()

    def after_power_cut(self, live: Path, target: Path, *, names_kept: bool = False) -> Path:
        """Return the folder after the power cut.

        With `names_kept`, names of files and folders reached the disk as they are now, fsynced or not; only contents
        are lost.
        """
        sizes = {each.stat().st_ino: each.stat().st_size for each in live.rglob("*") if each.is_file()}
        folders = {
            each: {child.name: child.stat().st_ino for child in each.iterdir()}
            for each in [live, *live.rglob("*")]
            if each.is_dir()
        }
        target.mkdir()
        for folder, names in sorted((folders if names_kept else self.folders).items()):
            place = target / folder.relative_to(live) if folder.is_relative_to(live) else target / "outside"
            # a folder whose own name was never fsynced is missing
            if not place.is_dir():
                continue
            for name, inode in names.items():
                if folder / name in folders or folder / name in self.folders:
                    (place / name).mkdir()
                else:
                    (place / name).write_bytes(self.files.get(inode, bytes(sizes.get(inode, 64))))
        return target


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    recorded = Disk()
    monkeypatch.setattr(os, "fsync", recorded.fsync)
    return recorded


def opened(
    folder: Path, durability: Durability, on_step: Callable[[str], None] = lambda _step: None
) -> LanceMemoryStore:
    return LanceMemoryStore(str(folder), on_step, durability=durability)


def lost(folder: Path, num_blocks: int) -> list[int]:
    """Return acknowledged blocks that are missing or changed."""
    missing = []
    try:
        with opened(folder, "process") as store:
            for index in range(num_blocks):
                try:
                    assert_same(store.read(KEY, index, index + 1)[0], make_block(segment=index))
                except StoreError:
                    missing.append(index)
    except StoreError:
        return list(range(num_blocks))
    return missing


def test_what_power_acknowledged_survives_and_what_process_did_does_not(tmp_path: Path, disk: Disk) -> None:
    """Check every put, also across processes (a store opened anew) and a compaction."""
    folder = tmp_path / "power"
    for index in range(6):
        with opened(folder, "power") as store:
            store.put(make_block(segment=index))
            if index == 3:
                store.compact()
            assert lost(disk.after_power_cut(folder, tmp_path / f"cut-{index}"), index + 1) == []
    with opened(tmp_path / "cut-5", "process") as store:
        assert store.verify() == 6
    folder = tmp_path / "process"
    before = disk.num_fsyncs
    with opened(folder, "process") as store:
        for index in range(6):
            store.put(make_block(segment=index))
    assert disk.num_fsyncs == before
    assert lost(disk.after_power_cut(folder, tmp_path / "cut-process"), 6) == list(range(6))
    # where the names reached the disk, the result is damage, not an empty store
    zeros = disk.after_power_cut(folder, tmp_path / "zeros", names_kept=True)
    with pytest.raises(CorruptionError), opened(zeros, "process") as store:
        store.segments(KEY)
    assert "the store is empty now" in recover(str(zeros)).actions[-1]
    with opened(zeros, "process") as store:
        assert store.documents() == []
        store.put(make_block())
        assert store.verify() == 1


def test_a_writer_waits_for_what_a_killed_one_committed(tmp_path: Path, disk: Disk) -> None:
    """Check files of a killed writer: the next manifest refers to them, and a replay acknowledges blocks not yet
    fsynced."""
    folder = tmp_path / "store"
    with opened(folder, "process") as killed:
        killed.put(make_block(segment=0))
        killed.put(make_block(segment=1))
    with opened(folder, "power") as store:
        assert store.put(make_block(segment=0)).duplicate
        store.put(make_block(segment=2))
    found = disk.after_power_cut(folder, tmp_path / "cut")
    # segment 1 was acknowledged by the other writer, with a weaker guarantee
    assert set(lost(found, 3)) <= {1}


class PowerCut(Exception):
    """Exception that ends an operation at one of its steps."""


@pytest.mark.parametrize("names_kept", [False, True])
@pytest.mark.parametrize("step", [step for step in STEPS if not step.startswith("fork")])
def test_a_power_cut_in_the_middle_loses_nothing_acknowledged(
    tmp_path: Path, disk: Disk, step: str, names_kept: bool
) -> None:
    folder = tmp_path / "store"
    armed = False

    def on_step(reached: str) -> None:
        if armed and reached == step:
            raise PowerCut

    with opened(folder, "power", on_step) as store:
        for index in range(3):
            store.put(make_block(segment=index))
        armed = True
        with pytest.raises(PowerCut):  # noqa: PT012 - which of them reaches the step is the point
            store.put(make_block(segment=3))
            store._commits = COMPACT_EVERY - 1
            store.put(make_block(segment=4))
            store.trim(KEY, 1)
            store.delete(KEY)
    found = disk.after_power_cut(folder, tmp_path / "cut", names_kept=names_kept)
    num_kept = 3 if step.startswith("put") else 5
    first = {"trim": 1, "delete": num_kept}.get(step.split(":")[0], 0)
    missing = lost(found, num_kept)
    if missing:
        # never silently: missing blocks were deleted, or the store reports damage
        assert names_kept or first
        report = recover(str(found))
        assert report.actions or first
        missing = lost(found, num_kept)
    assert [index for index in missing if index >= first] == []
    with opened(found, "process") as store:
        store.verify()
        store.put(make_block(segment=9))
        assert_same(store.read(KEY, 9, 10)[0], make_block(segment=9))


def test_a_disk_that_fails_is_told_and_not_forgotten(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path / "store", "power") as store:
        store.put(make_block())
        disk.fails = True
        with pytest.raises(StoreError, match=r"could not be written to the disk .*Input/output"):
            store.put(make_block(segment=1))
        disk.fails = False
        # the kernel has dropped unwritable pages and would now report them as written
        with pytest.raises(StoreError, match="could not be written"):
            store.put(make_block(segment=1))
        assert store.verify() >= 1
