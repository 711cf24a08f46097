# SPDX-License-Identifier: Apache-2.0
"""Processes and threads that run one operation on one store at the same moment.

Processes are spawned once for many races, because starting one costs seconds.
"""

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import lancedb  # noqa: F401 - else each process loads it at its first put, when it should race

from longmem.errors import LongMemError
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import MemoryStore
from longmem.types import DocumentKey, PutReceipt
from tests.blocks import make_block

SPAWN = multiprocessing.get_context("spawn")
START_S = 120.0
"""Seconds after which a process that has not started counts as failed."""


class Meeting(Protocol):
    """Barrier of threads or of processes."""

    def wait(self, timeout: float | None = None) -> int: ...


Race = Callable[[AbstractMemoryStore, int, Meeting], Any]
"""Function of one racer: its store, its number, and the barrier to wait at before each race."""


def put_each_alone(num_segments: int, store: AbstractMemoryStore, racer: int, meeting: Meeting) -> list[PutReceipt]:
    """Put segments of one document, one by one; all racers put equal blocks."""
    receipts = []
    for segment in range(num_segments):
        meeting.wait(START_S)
        receipts.append(store.put(make_block(segment=segment)))
    return receipts


def put_groups(
    num_groups: int, size: int, store: AbstractMemoryStore, racer: int, meeting: Meeting
) -> list[PutReceipt]:
    """Put segments in groups of one commit; the racers' groups start at different segments, so that they overlap."""
    receipts = []
    for group in range(num_groups):
        first = group * size
        meeting.wait(START_S)
        order = [first + (index + racer) % (size + 1) for index in range(size)]
        receipts += store.put_all([make_block(DocumentKey("default", "groups"), segment) for segment in order])
    return receipts


def put_other_tokens(num_segments: int, store: AbstractMemoryStore, racer: int, meeting: Meeting) -> list[str]:
    """Put a racer-specific block for every segment: one racer wins, the others get a conflict."""
    outcomes = []
    for segment in range(num_segments):
        meeting.wait(START_S)
        try:
            store.put(make_block(DocumentKey("default", "conflict"), segment, seed=racer))
            outcomes.append("new")
        except LongMemError as error:
            outcomes.append(type(error).__name__)
    return outcomes


def fork_into_one(num_targets: int, store: AbstractMemoryStore, racer: int, meeting: Meeting) -> list[str]:
    """Let all racers fork one document into one target."""
    outcomes = []
    for target in range(num_targets):
        meeting.wait(START_S)
        try:
            outcomes.append(str(store.fork(DocumentKey("default", "moby-dick"), DocumentKey("forks", str(target)))))
        except LongMemError as error:
            outcomes.append(type(error).__name__)
    return outcomes


def create_stores(num_stores: int, store: AbstractMemoryStore, racer: int, meeting: Meeting) -> list[str]:
    """Let racer 0 put the first block of each store while the others open that store. Return their errors."""
    errors = []
    for number in range(num_stores):
        uri = f"{store._database.uri}/{number}"  # type: ignore[attr-defined]
        meeting.wait(START_S)
        for _ in range(1 if racer == 0 else 6):
            try:
                with MemoryStore.open(uri) as opened:
                    if racer == 0:
                        opened.put(make_block())
                    else:
                        opened.fingerprint()
            except LongMemError as error:
                errors.append(f"{type(error).__name__}: {error}")
    return errors


def contested(found: list[list[PutReceipt]], num_rounds: int) -> int:
    """Return the number of keys that every racer put in one round; the receipts of one racer are in rounds of equal
    size."""
    rounds = [
        [{each.segment for each in receipts[start : start + size]} for start in range(0, len(receipts), size)]
        for receipts in found
        if (size := len(receipts) // num_rounds)
    ]
    return sum(len(set.intersection(*each)) for each in zip(*rounds, strict=True))


def check_receipts(found: list[list[PutReceipt]], segments: set[int]) -> None:
    """Assert that each segment is new exactly once over all racers."""
    new = Counter(each.segment for receipts in found for each in receipts if not each.duplicate)
    assert new == dict.fromkeys(segments, 1)


class Racers:
    """Spawned processes that wait for a race."""

    def __init__(self, count: int) -> None:
        self._barrier = SPAWN.Barrier(count)
        self._pipes, self._processes = [], []
        for racer in range(count):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=_live, args=(theirs, racer, self._barrier), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def race(self, uri: str, race: Race) -> list[Any]:
        """Run a race and return each racer's result. Each racer opens the store.

        `race` must be a function of a module, or a partial of one. Raises the error of the first racer that failed.
        """
        # every racer waits for its next race here: one that failed has broken the barrier for the others
        self._barrier.reset()
        for pipe in self._pipes:
            pipe.send((uri, race))
        found = [pipe.recv() for pipe in self._pipes]
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(START_S)


@contextmanager
def racers(count: int) -> Iterator[Racers]:
    found = Racers(count)
    try:
        yield found
    finally:
        found.close()


def _live(pipe: Any, racer: int, barrier: Meeting) -> None:
    while (task := pipe.recv()) is not None:
        uri, race = task
        try:
            with MemoryStore.open(uri) as store:
                pipe.send(race(store, racer, barrier))
        except BaseException as error:  # noqa: BLE001 - a failure must reach the test, and release the others
            barrier.abort()  # type: ignore[attr-defined]
            pipe.send(error)


def race_in_threads(store: AbstractMemoryStore, race: Race, count: int = 3) -> list[Any]:
    """Run a race in threads of this process, on one store."""
    meeting = threading.Barrier(count)
    found: list[Any] = [None] * count

    def run(racer: int) -> None:
        try:
            found[racer] = race(store, racer, meeting)
        except BaseException as error:  # noqa: BLE001 - as above
            meeting.abort()
            found[racer] = error

    threads = [threading.Thread(target=run, args=(racer,)) for racer in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
