# SPDX-License-Identifier: Apache-2.0
"""Store under writers that are killed and stopped, on a full disk, with damaged files (`tests/fault/crash/`)."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from longmem.store.lance.store import LanceMemoryStore
from longmem.store.lance.writer import STEPS
from tests.fault.crash.blocks import Content, key_of, make_block
from tests.fault.crash.checker import check
from tests.fault.crash.child import answer
from tests.fault.crash.damage import damaged_copies, judge
from tests.fault.crash.expected import ExpectedFile, Operation, Violation
from tests.fault.crash.full_disk import NoSmallDisk, fill_and_free
from tests.fault.crash.rounds import StoreRounds

pytestmark = pytest.mark.thorough

SEED = 4
FAULTS = {"kills": 4, "stops": 2, "failpoints": 8}
"""Smallest numbers of faults in a short run."""


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a store and its expected-state file, with two documents and a fork."""
    folder = tmp_path_factory.mktemp("small")
    expected = ExpectedFile(folder / "expected.jsonl")
    with LanceMemoryStore(str(folder / "memory.lance")) as store:
        for segment in range(4):
            do(store, expected, kind="put", document="a", segment=segment)
        for segment in (255, 256):
            do(store, expected, kind="put", document="b", segment=segment)
        do(store, expected, kind="fork", document="a", target="a-fork")
        do(store, expected, kind="delete", document="b")
        do(store, expected, kind="put", document="b", segment=0)
    check(str(folder / "memory.lance"), expected)
    return folder


def do(
    store: LanceMemoryStore, expected: ExpectedFile, kind: str, document: str, segment: int = 0, **more: str
) -> None:
    operation = Operation(expected.next_id(), kind, document, segment, version=1, **more)  # type: ignore[arg-type]
    if kind == "put":
        operation = replace(operation, checksum=make_block(operation.content).checksum())
    expected.record_sent(operation)
    expected.record_acked(operation, answer(store, operation))


def run_rounds(folder: Path, seed: int, num_rounds: int, lives: int) -> StoreRounds:
    rounds = StoreRounds(folder, seed)
    for _ in range(num_rounds):
        rounds.run_round(lives)
    print(rounds.line(), rounds.summary())  # noqa: T201 - the report of a run
    return rounds


def test_writers_that_die_lose_nothing(tmp_path: Path) -> None:
    """Run kill -9, stops, and deaths at steps of commits, under two writers and a reader."""
    found = run_rounds(tmp_path, SEED, num_rounds=2, lives=4).summary()
    assert found["missed_failpoints"] == {}
    assert found["losses"] == 0
    assert {name: found[name] >= least for name, least in FAULTS.items()} == dict.fromkeys(FAULTS, True)
    assert found["reader"]["blocks"] > 0


def test_a_full_disk_loses_nothing_and_may_be_freed(tmp_path: Path) -> None:
    try:
        found = fill_and_free(tmp_path)
    except NoSmallDisk as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    assert found.errors > 1
    assert found.stored_after == found.stored_before + 5


def test_damaged_files_are_told_and_never_a_number(small_store: Path, tmp_path: Path) -> None:
    assert_told(small_store, tmp_path, seed=SEED, count=16)


def assert_told(store: Path, folder: Path, seed: int, count: int) -> None:
    copies = damaged_copies(store / "memory.lance", folder, Random(seed), count)
    found = list(judge(store / "expected.jsonl", copies))
    assert len(found) == count
    assert [each for each in found if each.verdict not in ("intact", "told")] == []
    assert Counter(each.verdict for each in found)["told"] >= count // 8


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_rounds_lose_nothing(tmp_path: Path) -> None:
    """Run 90 s: more rounds on one store, a death at every step, and damage to the resulting store."""
    found = run_rounds(tmp_path / "rounds", 11, num_rounds=6, lives=6).summary()
    assert set(found["by_failpoint"]) == set(STEPS)
    assert_told(tmp_path / "rounds", tmp_path / "damaged", seed=11, count=40)


# --- the harness can fail ---------------------------------------------------------------------------------------


def lose(store: LanceMemoryStore) -> None:
    store.delete(key_of("b"))


def put_foreign(store: LanceMemoryStore) -> None:
    store.put(make_block(Content(1, "a", 1), "b"))


def put_unsent(store: LanceMemoryStore) -> None:
    store.put(make_block(Content(4, "a", 9)))


def put_unknown(store: LanceMemoryStore) -> None:
    store.put(make_block(Content(0, "nobody", 1)))


def double_a_row(store: LanceMemoryStore) -> None:
    rows = store._catalogue()
    store._database.append("catalogue", rows.slice(0, 1))


def leave_garbage(store: LanceMemoryStore) -> None:
    Path(store._database.uri, "garbage").write_bytes(bytes(100 * 2**20))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lose, "acknowledged and not visible"),
        (put_foreign, "bytes that were never sent"),
        (put_unsent, "bytes that were never sent"),
        (put_unknown, "documents that nobody wrote"),
        (double_a_row, "more than one catalogue row"),
        (leave_garbage, "disk holds"),
    ],
)
def test_the_checker_sees(
    small_store: Path, tmp_path: Path, break_it: Callable[[LanceMemoryStore], None], message: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(small_store, folder)
    uri = str(folder / "memory.lance")
    with LanceMemoryStore(uri) as store:
        break_it(store)
    with pytest.raises(Violation, match=message):
        check(uri, ExpectedFile(folder / "expected.jsonl"))


def test_half_of_an_operation_is_seen(tmp_path: Path) -> None:
    """Check that a delete without an answer has happened or not, and nothing between."""
    uri, expected = str(tmp_path / "memory.lance"), ExpectedFile(tmp_path / "expected.jsonl")
    with LanceMemoryStore(uri) as store:
        for segment in range(2):
            do(store, expected, kind="put", document="a", segment=segment)
        expected.record_sent(Operation(expected.next_id(), "delete", "a"))
        check(uri, expected)
        store._database.delete("catalogue", store._catalogue().schema, "segment = 1")
    expected.record_sent(Operation(expected.next_id(), "delete", "a"))
    with pytest.raises(Violation, match="half of an operation"):
        check(uri, expected)


def test_an_answer_that_contradicts_is_seen(tmp_path: Path) -> None:
    expected = ExpectedFile(tmp_path / "expected.jsonl")
    operation = Operation(1, "put", "a", 0, 1, "x")
    expected.record_sent(operation)
    with pytest.raises(Violation, match="was answered"):
        expected.record_acked(operation, {"duplicate": True})
