# SPDX-License-Identifier: Apache-2.0
"""Assignment of the layers without memory to workers that would otherwise be idle. Needs no Ray."""

import pytest

from actors.executor.prepare_policy import PreparePolicy
from actors.workers.pools import TASKS_PER_ACTOR, ActorPool
from actors.workers.start import Workers
from actors.workers.store import StorePool
from longmem.runtime.executor import PUT_SEGMENTS


@pytest.fixture
def workers() -> Workers:
    return Workers(ActorPool([1], ["encoder"]), StorePool([2], ["store"]), ActorPool([3, 4], ["first", "second"]))


def test_readers_prepare_until_an_encoder_has_waited_for_them(workers: Workers) -> None:
    policy = PreparePolicy(workers)
    (encoder,), (reader, other) = workers.encoders.workers, workers.readers.workers
    assert not policy.encodes(encoder), "nothing is there to be read: nobody waits for readers"
    encoder.tasks = ["encode"]
    reader.tasks = ["score"]
    assert not policy.encodes(encoder), "it has something to do"
    encoder.tasks = []
    assert policy.encodes(encoder)
    encoder.tasks = ["encode"]
    assert policy.encodes(encoder), "until a reader waits"
    policy.scores(reader)
    assert policy.encodes(encoder), "this one has something to do"
    policy.scores(other)
    assert not policy.encodes(encoder)


def test_balance_last_reader_does_not_wait(workers: Workers) -> None:
    policy = PreparePolicy(workers)
    (encoder,), (reader, other) = workers.encoders.workers, workers.readers.workers
    reader.tasks = ["score"]
    assert policy.encodes(encoder)
    policy.scores(other)
    assert policy.encodes(encoder), "no encoder was at work"


def test_what_is_only_written_is_never_prepared(workers: Workers) -> None:
    policy = PreparePolicy(workers)
    (encoder,) = workers.encoders.workers
    for tasks in ([], ["encode"], []):
        encoder.tasks = tasks
        assert not policy.encodes(encoder)


def test_encoders_that_are_far_ahead_prepare_before_they_wait(workers: Workers) -> None:
    """Check encoders that are far ahead, except for segments that a store may hold until a batch of puts is full."""
    policy = PreparePolicy(workers)
    (encoder,) = workers.encoders.workers
    encoder.tasks = ["encode"]
    enough = PUT_SEGMENTS + 2 * TASKS_PER_ACTOR
    found = []
    for policy.unscored_segments in (0, enough, enough + 1, enough):
        found.append(policy.encodes(encoder))
    assert found == [False, False, True, False]


def test_in_the_end_encoders_prepare_what_readers_would_be_left_with(workers: Workers) -> None:
    policy = PreparePolicy(workers)
    (encoder,) = workers.encoders.workers
    encoder.tasks = ["encode"]
    policy.unscored_segments = 4
    found = []
    for policy.unsubmitted_segments in range(6, -1, -1):
        found.append(policy.encodes(encoder))
    assert found == [False] * 3 + [True] * 4
    policy.unscored_segments = 0
    assert not policy.encodes(encoder), "nobody is going to read"
