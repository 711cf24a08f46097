"""Assignment of the layers without memory to workers that would otherwise be idle. Needs no Ray."""

import pytest

from actors.executor.prepare_policy import Balance
from actors.workers.pools import TASKS_PER_ACTOR, ActorPool
from actors.workers.start import Workers
from actors.workers.store import StorePool
from longmem.runtime.executor import PUT_SEGMENTS


@pytest.fixture
def workers() -> Workers:
    return Workers(ActorPool([1], ["encoder"]), StorePool([2], ["store"]), ActorPool([3, 4], ["first", "second"]))


def test_readers_prepare_until_an_encoder_has_waited_for_them(workers: Workers) -> None:
    balance = Balance(workers)
    (encoder,), (reader, other) = workers.encoders.workers, workers.readers.workers
    assert not balance.encodes(encoder), "nothing is there to be read: nobody waits for readers"
    encoder.tasks = ["encode"]
    reader.tasks = ["score"]
    assert not balance.encodes(encoder), "it has something to do"
    encoder.tasks = []
    assert balance.encodes(encoder)
    encoder.tasks = ["encode"]
    assert balance.encodes(encoder), "until a reader waits"
    balance.scores(reader)
    assert balance.encodes(encoder), "this one has something to do"
    balance.scores(other)
    assert not balance.encodes(encoder)


def test_balance_last_reader_does_not_wait(workers: Workers) -> None:
    balance = Balance(workers)
    (encoder,), (reader, other) = workers.encoders.workers, workers.readers.workers
    reader.tasks = ["score"]
    assert balance.encodes(encoder)
    balance.scores(other)
    assert balance.encodes(encoder), "no encoder was at work"


def test_what_is_only_written_is_never_prepared(workers: Workers) -> None:
    balance = Balance(workers)
    (encoder,) = workers.encoders.workers
    for tasks in ([], ["encode"], []):
        encoder.tasks = tasks
        assert not balance.encodes(encoder)


def test_encoders_that_are_far_ahead_prepare_before_they_wait(workers: Workers) -> None:
    """Check encoders that are far ahead, except for segments that a store may hold until a batch of puts is full."""
    balance = Balance(workers)
    (encoder,) = workers.encoders.workers
    encoder.tasks = ["encode"]
    enough = PUT_SEGMENTS + 2 * TASKS_PER_ACTOR
    found = []
    for balance.unscored_segments in (0, enough, enough + 1, enough):
        found.append(balance.encodes(encoder))
    assert found == [False, False, True, False]


def test_in_the_end_encoders_prepare_what_readers_would_be_left_with(workers: Workers) -> None:
    balance = Balance(workers)
    (encoder,) = workers.encoders.workers
    encoder.tasks = ["encode"]
    balance.unscored_segments = 4
    found = []
    for balance.num_left in range(6, -1, -1):
        found.append(balance.encodes(encoder))
    assert found == [False] * 3 + [True] * 4
    balance.unscored_segments = 0
    assert not balance.encodes(encoder), "nobody is going to read"
