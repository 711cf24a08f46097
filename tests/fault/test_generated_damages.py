# SPDX-License-Identifier: Apache-2.0
"""Damage of every kind to every kind of file of a store.

A store that `verify` accepts can be read, written and compacted. A store that `recover` reports as repaired is
repaired. No sound block is lost without being named.
"""

import multiprocessing
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from longmem.errors import CorruptionError, MissingBlockError
from longmem.store.lance import acknowledged, connection
from longmem.store.lance.repair import RecoveryReport, recover
from longmem.store.lance.store import LanceMemoryStore
from longmem.types import DocumentKey
from tests.blocks import KEY, assert_same, make_block

pytestmark = pytest.mark.thorough

SEED = 7
QUICK = 8
"""Number of damages in a default run, for each kind and file type. A slow run makes ALL of them."""
ALL = 140
OTHER, FORK, DELETED = (DocumentKey("default", name) for name in ("other", "fork", "deleted"))
HELD = {KEY: range(2, 6), OTHER: range(2), FORK: range(2, 5)}
"""Segments of each document."""
SEEDS = {KEY: 0, OTHER: 5, FORK: 0}
KINDS = ("half", "empty", "zeros", "flip", "missing", "older", "other")
PARTS = ("_versions", "data", "_deletions", "_transactions", "hint", "marks", "deletions")


@dataclass(frozen=True)
class Damage:
    """One file of a store, and the change made to it."""

    file: Path
    kind: str
    source: Path | None = None
    """File that replaces it."""

    def __str__(self) -> str:
        return f"{self.kind} {self.file}" + (f" <- {self.source}" if self.source else "")

    def apply(self, folder: Path, chance: random.Random) -> None:
        path = folder / self.file
        data = path.read_bytes()
        if self.kind == "half":
            path.write_bytes(data[: len(data) // 2])
        elif self.kind == "empty":
            path.write_bytes(b"")
        elif self.kind == "zeros":
            path.write_bytes(bytes(len(data)))
        elif self.kind == "missing":
            path.unlink()
        elif self.kind == "flip":
            if data:
                at = chance.randrange(len(data))
                path.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
        else:
            assert self.source is not None
            path.write_bytes((folder / self.source).read_bytes())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small store with all traces of a long life: forks, trims, deletes, a compaction, old versions."""
    folder = tmp_path_factory.mktemp("sound") / "memory.lance"
    with LanceMemoryStore(str(folder)) as store:
        store.put(make_block(DELETED, 0))
        store.put_all([make_block(KEY, index) for index in range(3)])
        store.put_all([make_block(OTHER, index, seed=5) for index in range(2)])
        store.compact()
        store.put_all([make_block(KEY, index) for index in range(3, 5)])
        store.fork(KEY, FORK)
        store.trim(KEY, 2)
        store.trim(FORK, 2)
        store.delete(DELETED)
        store.put(make_block(KEY, 5))
        assert store.verify() == sum(map(len, HELD.values()))
    return folder


def damages(folder: Path, chance: random.Random) -> Iterator[Damage]:
    """Yield damages without end: each round has every kind of damage for every kind of file of every table that has
    some."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    groups: dict[tuple[str, str], list[Path]] = {}
    for file in files:
        table = file.parts[0].split("-")[0]
        part = "hint" if file.name == acknowledged.HINT else "marks" if len(file.parts) == 2 else file.parts[1]
        groups.setdefault((table, part), []).append(file)
    assert {part for _, part in groups} == set(PARTS)
    while True:
        pairs = [(group, kind) for group in sorted(groups) for kind in KINDS]
        chance.shuffle(pairs)
        for group, kind in pairs:
            file = chance.choice(groups[group])
            if kind not in ("older", "other"):
                yield Damage(file, kind)
                continue
            peers = [each for each in groups[group] if each != file]
            if kind == "older":
                peers = [each for each in peers if _time(folder / each) < _time(folder / file)]
            if peers:
                yield Damage(file, kind, chance.choice(peers))


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def copy(sound: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    # Lance caches files that it has read, and the next copy has this path
    connection.shared_session.cache_clear()
    return folder


def right_blocks(folder: Path) -> set[tuple[DocumentKey, int]]:
    """Return the readable blocks, each checked against its original. Deleted ones must not exist."""
    found = set()
    with LanceMemoryStore(str(folder)) as store:
        for key, segments in HELD.items():
            for segment in segments:
                try:
                    (block,) = store.read(key, segment, segment + 1)
                except (CorruptionError, MissingBlockError):
                    continue
                assert_same(block, make_block(key, segment, seed=SEEDS[key]))
                found.add((key, segment))
    return found


def check_works(folder: Path) -> None:
    """Run all operations of a writer on a store that is reported sound; check the result."""
    new = DocumentKey("default", "new")
    with LanceMemoryStore(str(folder)) as store:
        for key, segments in HELD.items():
            for segment in segments:
                store.put(make_block(key, segment, seed=SEEDS[key]))
        store.put(make_block(new))
        store.fork(new, DocumentKey("default", "new-fork"))
        store.compact(0.0)
        assert store.delete(new) == 1
        store.compact(0.0)
    assert right_blocks(folder) == {(key, segment) for key, segments in HELD.items() for segment in segments}
    with LanceMemoryStore(str(folder)) as store:
        store.verify()


def passes(folder: Path) -> bool:
    try:
        with LanceMemoryStore(str(folder)) as store:
            store.verify()
            return {key: [info.segment for info in store.segments(key)] for key in store.documents()} == {
                key: list(segments) for key, segments in HELD.items()
            }
    except CorruptionError:
        return False


def judge(sound: Path, folder: Path, damage: Damage, seed: int) -> str:
    """Return `sound` for a damage without effect, else `mended`. Raises AssertionError for any other outcome."""
    copy(sound, folder)
    damage.apply(folder, random.Random(seed))
    told = ""
    try:
        with LanceMemoryStore(str(folder)) as store:
            store.verify()
    except CorruptionError as error:
        told = str(error)
    if not told:
        assert passes(folder), "verify passes, and documents are not what they were"
        assert recover(str(folder)).actions == [], "verify passes, and the repair does something"
        check_works(folder)
        return "sound"
    report = recover(str(folder))
    assert report.actions, f"the repair says nothing of: {told}"
    check_mended(folder, report)
    return "mended"


def check_mended(folder: Path, report: RecoveryReport) -> None:
    with LanceMemoryStore(str(folder)) as store:
        held = store.verify()
        assert held == report.num_blocks
    right = right_blocks(folder)
    said = "\n".join(report.actions)
    for key, segments in HELD.items():
        for segment in segments:
            if (key, segment) not in right:
                named = f"segment {segment} of {key}" in said or "store is empty" in said
                # blocks of lost commits are reported as documents and a number
                assert named or ("to be written again" in said or "write these documents again" in said), (
                    f"{key} segment {segment} is lost and not named in: {said}"
                )
    assert recover(str(folder)).actions == []
    check_works(folder)


def judged(sound: Path, folder: Path, damage: Damage, seed: int) -> tuple[str, str]:
    """Return the outcome of a damage, and its description."""
    try:
        return judge(sound, folder, damage, seed), str(damage)
    except Exception as error:  # noqa: BLE001 - all of them are collected, with the damage that caused them
        return "wrong", f"{seed} {damage}: {type(error).__name__}: {str(error)[:300]}"


def judged_apart(sound: Path, folder: Path, chosen: list[Damage]) -> Iterator[tuple[str, str]]:
    """Judge in a process of its own.

    A flipped bit in a length can make Lance request more memory than available; Rust then aborts the process. That is a
    visible failure, and nothing is written.
    """
    spawn, start = multiprocessing.get_context("spawn"), 0
    while start < len(chosen):
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            for number in range(start, len(chosen)):
                start = number + 1
                try:
                    yield pool.submit(judged, sound, folder, chosen[number], SEED + number).result()
                except BrokenProcessPool:
                    yield "ended the process", str(chosen[number])
                    break


def test_generated_damages_are_told_and_mended(sound: Path, tmp_path: Path) -> None:
    without_flips = (damage for damage in damages(sound, random.Random(SEED)) if damage.kind != "flip")
    found = [judged(sound, tmp_path / "memory.lance", damage, SEED) for damage in islice(without_flips, QUICK)]
    assert [words for verdict, words in found if verdict == "wrong"] == []
    assert Counter(verdict for verdict, _ in found)["mended"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_generated_damages_are_told_and_mended(sound: Path, tmp_path: Path) -> None:
    chosen = list(islice(damages(sound, random.Random(SEED)), ALL))
    found = list(judged_apart(sound, tmp_path / "memory.lance", chosen))
    assert [words for verdict, words in found if verdict == "wrong"] == []
    verdicts = Counter(verdict for verdict, _ in found)
    assert verdicts["mended"] >= ALL // 8
    assert verdicts["ended the process"] <= ALL // 20
