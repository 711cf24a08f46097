# SPDX-License-Identifier: Apache-2.0
"""Choice of an actor by ActorPool. Needs no running Ray."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.workers.base import RESTART, WorkerInfo
from actors.workers.pools import TASKS_PER_ACTOR, ActorPool, PoolWorker


def pool_of(names: str, usable: str | None = None) -> ActorPool:
    pool = ActorPool(list(names), list(names))
    for worker in pool.workers:
        if usable is None or worker.name in usable:
            worker.info = WorkerInfo(pid=1, created_s=0.0, node_id="node", result=None)
    return pool


def send(pool: ActorPool, **options: Any) -> str:
    """Return the name of the actor that got a task; `-` when all are full."""
    worker = pool.choose(**options)
    if worker is None:
        return "-"
    worker.tasks.append(object())
    return worker.name


def test_an_empty_pool_takes_nothing() -> None:
    pool = ActorPool([], [])
    assert (pool.slots, pool.can_accept_tasks, pool.choose()) == (0, False, None)


def test_tasks_go_round_until_every_actor_has_its_fill() -> None:
    pool = pool_of("abc")
    assert "".join(send(pool) for _ in range(7)) == "abcabc-"
    assert pool.slots == 0


def test_the_least_loaded_actor_is_next() -> None:
    pool = pool_of("abc")
    for _ in range(6):
        send(pool)
    pool.workers[1].tasks.pop()
    assert send(pool) == "b"
    pool.workers[2].tasks.clear()
    assert send(pool) == "c"
    assert pool.slots == 1


def test_rank_goes_before_load() -> None:
    pool = pool_of("abc")
    wanted = [send(pool, rank=lambda worker: worker.name != "c") for _ in range(3)]
    assert wanted == ["c", "c", "a"]


def test_an_actor_that_is_starting_gets_nothing() -> None:
    pool = pool_of("abc", usable="b")
    assert pool.slots == TASKS_PER_ACTOR
    assert "".join(send(pool) for _ in range(3)) == "bb-"
    assert pool.usable == [pool.workers[1]]


def test_pool_actor_options_restart_without_limit_and_no_ray_retries() -> None:
    assert RESTART == {"max_restarts": -1, "max_task_retries": 0}


@given(
    names=st.sets(st.sampled_from("abcde"), min_size=1),
    lost=st.sets(st.sampled_from("abcde")),
    num_tasks=st.integers(0, 12),
)
def test_no_actor_gets_more_than_its_fill(names: set[str], lost: set[str], num_tasks: int) -> None:
    pool = pool_of("".join(sorted(names)), usable="".join(names - lost))
    room = TASKS_PER_ACTOR * len(names - lost)
    sent = [send(pool) for _ in range(num_tasks)]
    assert sent.count("-") == max(0, num_tasks - room)
    loads = {worker.name: len(worker.tasks) for worker in pool.workers}
    assert all(loads[name] <= (0 if name in lost else TASKS_PER_ACTOR) for name in names)
    usable = [loads[name] for name in names - lost]
    assert not usable or max(usable) - min(usable) <= 1
    assert pool.slots == room - sum(usable)


def test_workers_are_compared_by_identity() -> None:
    assert PoolWorker("actor", "name") != PoolWorker("actor", "name")


def test_a_task_that_must_be_alone_gets_an_idle_actor_and_keeps_it() -> None:
    pool = pool_of("ab")
    assert send(pool) == "a"
    worker = pool.choose(exclusive=True)
    assert worker is pool.workers[1]
    worker.tasks.append(object())
    worker.exclusive = True
    assert pool.choose(exclusive=True) is None
    assert pool.slots == TASKS_PER_ACTOR - 1
    assert send(pool) == "a"
    assert send(pool) == "-"
