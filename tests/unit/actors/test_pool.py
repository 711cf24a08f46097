"""ActorPool counts the tasks of each actor; nothing here needs a running Ray, actors are only handed to the call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pool import RESTART, TASKS_PER_ACTOR, ActorPool


def pool_of(names: str) -> ActorPool:
    return ActorPool(list(names))


def send(pool: ActorPool, choose: int | None = None) -> str:
    """The actor that got the task."""
    index, actor = pool.send(lambda actor: actor, choose)
    assert actor == pool.actors[index]
    return str(actor)


def test_a_pool_needs_an_actor() -> None:
    with pytest.raises(AssertionError, match="at least one actor"):
        ActorPool([])


def test_tasks_go_round() -> None:
    pool = pool_of("abc")
    assert "".join(send(pool) for _ in range(6)) == "abcabc"
    assert pool.slots == 0


def test_the_least_loaded_actor_is_next() -> None:
    pool = pool_of("abc")
    for _ in range(6):
        send(pool)
    pool.done(1)
    assert send(pool) == "b"
    pool.done(2)
    pool.done(2)
    pool.done(0)
    assert send(pool) == "c"
    assert pool.slots == 2


def test_a_chosen_actor_gets_it_whatever_its_load() -> None:
    pool = pool_of("ab")
    assert [send(pool, choose=1) for _ in range(3)] == ["b"] * 3
    assert pool.slots == 2 * TASKS_PER_ACTOR - 3
    assert send(pool) == "a"


def test_slots_count_every_task_of_every_actor() -> None:
    pool = pool_of("abc")
    assert pool.slots == 3 * TASKS_PER_ACTOR
    send(pool)
    send(pool, choose=0)
    assert pool.slots == 3 * TASKS_PER_ACTOR - 2
    pool.done(0)
    assert pool.slots == 3 * TASKS_PER_ACTOR - 1


def test_the_result_of_the_call_comes_back() -> None:
    pool = pool_of("ab")
    assert pool.send(lambda actor: (actor, "outcome", "block")) == (0, ("a", "outcome", "block"))


def test_a_task_cannot_end_twice() -> None:
    pool = pool_of("ab")
    send(pool)
    pool.done(0)
    for index in (0, 1):
        with pytest.raises(AssertionError, match=f"actor {index} had no task"):
            pool.done(index)
    assert pool.slots == 2 * TASKS_PER_ACTOR


def test_actors_restart_and_calls_are_repeated_for_ever() -> None:
    assert RESTART == {"max_restarts": -1, "max_task_retries": -1}


@given(
    size=st.integers(1, 5),
    steps=st.lists(st.one_of(st.none(), st.integers(0, 4), st.tuples(st.integers(0, 4))), max_size=40),
)
def test_load_is_counted_whatever_happens(size: int, steps: list[int | tuple[int] | None]) -> None:
    """None sends to any actor, (n,) to actor n, n ends a task of actor n."""
    pool, load = ActorPool(list(range(size))), [0] * size
    for step in steps:
        if isinstance(step, int):
            if load[step % size]:
                pool.done(step % size)
                load[step % size] -= 1
        else:
            chosen = None if step is None else step[0] % size
            index, actor = pool.send(lambda actor: actor, chosen)
            assert index == actor == (load.index(min(load)) if chosen is None else chosen)
            load[index] += 1
        assert pool.slots == size * TASKS_PER_ACTOR - sum(load)
