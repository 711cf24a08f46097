# SPDX-License-Identifier: Apache-2.0
"""Reaction of the driver to workers that die, hang or stop: on real actors without a model."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import ray

from actors.executor.health import Supervisor
from actors.executor.timeouts import Timeouts
from actors.workers.pools import PoolWorker
from longmem.errors import QuarantineError
from longmem.runtime.executor import STAGES, Stage
from longmem.types import DocumentKey
from tests.scripted_driver import LIMIT_S, Driver, attach, segments_of, start

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

QUICK = Timeouts(max_tries=3, unresponsive_s=1.0, kill_s=2.0)


@pytest.fixture
def started(ray_cluster: None, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Return a factory `started(timeouts, deadly=…, encoders=2, …)` of executors whose workers are all ready."""
    from tests.scripted_workers import Script

    running = []

    def begin(timeouts: Timeouts = QUICK, *, encoders: int = 1, **places: Any) -> Driver:
        running.append(start(Script(tmp_path, **places), timeouts, [{}] * encoders))
        return running[-1]

    yield begin
    for driver in running:
        driver.executor.close()


# --- tasks that end their worker ---------------------------------------------------------------------------------


def test_dispatch_poison_segment_is_quarantined_alone(started: Callable[..., Driver]) -> None:
    driver = started(encoders=2, deadly=frozenset({("encode", "poison", 1)}))
    poison, other = segments_of("poison", 3), segments_of("other", 5)
    for segment in [*poison, *other]:
        driver.executor.submit("encode", segment)
    driver.until(lambda: len(driver.completions) == 8)
    errors = {(each.segment.key.document, each.segment.index): each.error for each in driver.completions}
    assert len(errors) == 8
    error = errors.pop(("poison", 1))
    assert isinstance(error, QuarantineError)
    assert "encode of test/poison segment 1 failed 3 times" in str(error)
    assert "--resume" in str(error)
    assert set(errors.values()) == {None}
    # each death is attributed, also with other tasks in the same process
    assert len(driver.script.begun("encode", "poison", 1)) == 3
    blamed = [event for event in driver.events if event.kind in ("retry", "quarantined")]
    assert [event.kind for event in blamed] == ["retry", "retry", "quarantined"]
    assert {(event.segment.key.document, event.segment.index) for event in blamed if event.segment} == {("poison", 1)}
    assert len(driver.kinds("lost")) == 3
    assert driver.executor.wait(0.0) == []


def test_dispatch_segments_queued_behind_poison_are_not_suspected(started: Callable[..., Driver]) -> None:
    """Check one worker with one try: a single attribution quarantines a segment."""
    driver = started(Timeouts(max_tries=1), deadly=frozenset({("encode", "a", 0)}))
    errors = driver.run("encode", segments_of("a", 4))
    assert [type(errors[index]) for index in range(4)] == [QuarantineError, type(None), type(None), type(None)]
    assert driver.kinds("retry", "quarantined") == ["quarantined"]


@pytest.mark.parametrize(("place", "why"), [("deadly", "failed 2 times"), ("faulty", "a bug of ours")])
def test_dispatch_batch_of_puts_only_failing_one_is_quarantined(
    started: Callable[..., Driver], place: str, why: str
) -> None:
    endless = frozenset({("encode", "b", 0)})
    driver = started(Timeouts(max_tries=2), endless=endless, **{place: frozenset({("put", "a", 2)})})
    segments = segments_of("a", 6)
    driver.run("encode", segments)
    # while a segment is being encoded, puts wait for a larger batch
    driver.executor.submit("encode", segments_of("b", 1)[0])
    errors = driver.run("put", segments)
    assert isinstance(errors.pop(2), QuarantineError)
    assert set(errors.values()) == {None}
    blamed = [event for event in driver.events if event.kind in ("retry", "quarantined")]
    assert {event.segment.index for event in blamed if event.segment} == {2}
    assert why in blamed[-1].message
    # once in the batch, and twice alone
    assert len(driver.script.begun("put", "a", 2)) == 3


def test_a_bug_is_tried_again_and_then_set_aside(started: Callable[..., Driver]) -> None:
    driver = started(faulty=frozenset({("score", "a", 0)}))
    segments = segments_of("a", 2)
    driver.run("encode", segments)
    errors = driver.run("score", segments)
    assert isinstance(errors[0], QuarantineError)
    assert "a bug of ours" in str(errors[0])
    assert errors[1] is None
    assert driver.script.begun("score", "a", 0) == [driver.pid("score")] * 3
    assert driver.kinds("lost", "back") == []


def test_a_task_without_end_costs_its_worker_after_the_deadline(started: Callable[..., Driver]) -> None:
    # it must not pass between the start of a process and that of its first task, on a busy machine either
    driver = started(Timeouts(max_tries=2, task_s=2.5), endless=frozenset({("encode", "a", 0)}))
    errors = driver.run("encode", segments_of("a", 2))
    assert isinstance(errors[0], QuarantineError)
    assert errors[1] is None
    assert driver.kinds("killed", "lost") == ["killed", "lost"] * 2, driver.events
    assert "more than 2.5 s" in next(event.message for event in driver.events if event.kind == "killed")


# --- workers that two jobs share --------------------------------------------------------------------------------


def turn_both(guilty: Driver, innocent: Driver, done: Callable[[], bool]) -> None:
    deadline_s = monotonic() + LIMIT_S
    while not done():
        assert monotonic() < deadline_s, f"stuck after {guilty.events} and {innocent.events}"
        for driver in (guilty, innocent):
            driver.completions += driver.executor.wait(0.1)
            driver.events += driver.executor.events()


@pytest.mark.parametrize("stage", STAGES)
def test_shared_worker_that_a_task_ends_is_charged_to_its_job(started: Callable[..., Driver], stage: Stage) -> None:
    """Give each job one task at the worker and one try: a single wrong charge quarantines the innocent task."""
    once = Timeouts(max_tries=1)
    guilty = started(once, deadly=frozenset({(stage, "guilty", 0)}), linger_s=0.5)
    innocent = attach(guilty, once)
    places = {guilty: segments_of("guilty", 1), innocent: segments_of("innocent", 1)}
    for driver, segments in places.items():
        if stage != "encode":
            driver.run("encode", segments)
    before = {driver: len(driver.completions) for driver in places}
    guilty.executor.submit(stage, places[guilty][0])
    guilty.until(lambda: guilty.script.begun(stage, "guilty", 0) != [])
    innocent.executor.submit(stage, places[innocent][0])
    turn_both(guilty, innocent, lambda: all(len(each.completions) > number for each, number in before.items()))
    error = guilty.completions[-1].error
    assert isinstance(error, QuarantineError)
    assert f"{stage} of test/guilty segment 0 failed 1 times" in str(error)
    assert innocent.completions[-1].error is None
    assert innocent.kinds("retry", "quarantined") == []
    assert innocent.kinds("lost") == ["lost"]


def test_shared_worker_deadline_of_a_task_begins_when_it_runs(started: Callable[..., Driver]) -> None:
    """Let a task with a short deadline wait behind an endless one of another job, whose deadline is longer."""
    guilty = started(Timeouts(max_tries=1, task_s=5.0), endless=frozenset({("encode", "guilty", 0)}))
    # it must not pass between the start of a process and that of its first task, on a busy machine either
    innocent = attach(guilty, Timeouts(max_tries=1, task_s=2.5))
    guilty.executor.submit("encode", segments_of("guilty", 1)[0])
    guilty.until(lambda: guilty.script.begun("encode", "guilty", 0) != [])
    innocent.executor.submit("encode", segments_of("innocent", 1)[0])
    turn_both(guilty, innocent, lambda: bool(guilty.completions and innocent.completions))
    assert isinstance(guilty.completions[0].error, QuarantineError)
    assert innocent.completions[0].error is None
    assert guilty.kinds("killed") == ["killed"]
    assert innocent.kinds("killed", "retry") == [], innocent.events


def test_shared_worker_that_a_dead_job_left_busy_is_ended_by_another(
    started: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.executor.health.ORPHAN_S", 1.0)
    dead = started(Timeouts(task_s=1.0), endless=frozenset({("encode", "dead", 0)}))
    other = attach(dead, Timeouts(max_tries=1, task_s=2.0))
    dead.executor.submit("encode", segments_of("dead", 1)[0])
    dead.until(lambda: dead.script.begun("encode", "dead", 0) != [])
    assert other.run("encode", segments_of("other", 2)) == {0: None, 1: None}
    (killed,) = [event for event in other.events if event.kind == "killed"]
    assert "late with a task of another job" in killed.message
    assert other.kinds("retry") == []


# --- workers that die or stop -----------------------------------------------------------------------------------


def test_workers_that_die_while_nothing_runs_come_back(
    started: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check idle workers: a stage without its worker has no slots, so that a caller submits nothing and only waits."""
    driver = started()
    first = {stage: driver.pid(stage) for stage in STAGES}
    full = {stage: driver.executor.slots(stage) for stage in STAGES}
    slots_of_lost: dict[Stage, int] = {}
    lost = Supervisor.lost

    def recording(self: Supervisor, stage: Stage, worker: PoolWorker, error: Exception) -> None:
        # at the moment of the loss: the worker may be back before `wait` returns
        lost(self, stage, worker, error)
        slots_of_lost[stage] = driver.executor.slots(stage)

    monkeypatch.setattr(Supervisor, "lost", recording)
    for pid in first.values():
        os.kill(pid, signal.SIGKILL)
    driver.until(lambda: len(driver.kinds("back")) == len(STAGES))
    assert slots_of_lost == dict.fromkeys(STAGES, 0)
    assert {stage: driver.executor.slots(stage) for stage in STAGES} == full
    assert sorted(driver.kinds("lost", "back")) == ["back"] * 3 + ["lost"] * 3
    assert all(driver.pid(stage) != first[stage] for stage in STAGES)
    for stage in STAGES:
        assert driver.run(stage, segments_of("a", 2)) == {0: None, 1: None}


def test_idle_worker_that_is_back_before_the_next_check_is_noticed(started: Callable[..., Driver]) -> None:
    """Check a worker that dies while it is idle and restarts between two checks, so that no call to it fails."""
    driver = started(Timeouts(unresponsive_s=LIMIT_S, kill_s=LIMIT_S))
    actor = driver.workers.by_stage()["encode"].workers[0].actor
    first = driver.pid("encode")
    os.kill(first, signal.SIGKILL)
    answering, deadline = first, monotonic() + LIMIT_S
    while answering == first:
        assert monotonic() < deadline, "no next process"
        with suppress(ray.exceptions.RayError):
            answering = ray.get(actor.alive.remote()).pid
    driver.until(lambda: driver.kinds("back") == ["back"])
    assert driver.kinds("stalled", "killed", "lost", "back") == ["lost", "back"]
    assert f"process {first} has ended" in driver.events[0].message
    assert driver.pid("encode") != first
    assert driver.run("encode", segments_of("a", 2)) == {0: None, 1: None}


def test_a_stopped_worker_is_told_once_and_killed(started: Callable[..., Driver]) -> None:
    driver = started()
    segments = segments_of("a", 2)
    driver.run("encode", segments)
    first = {stage: driver.pid(stage) for stage in STAGES}
    for pid in first.values():
        os.kill(pid, signal.SIGSTOP)
    for stage in STAGES:
        for segment in segments:
            driver.executor.submit(stage, segment)
    driver.until(lambda: len(driver.completions) == 8 and len(driver.kinds("back")) == 3)
    assert all(each.error is None for each in driver.completions)
    for stage in STAGES:
        mine = [event for event in driver.events if event.stage == stage and event.segment is None]
        assert [event.kind for event in mine] == ["stalled", "killed", "lost", "back"]
        assert f"process {first[stage]}" in mine[0].message
        assert {event.worker for event in mine} == {driver.workers.by_stage()[stage].workers[0].name}
        assert driver.pid(stage) != first[stage]


def test_a_worker_that_goes_on_in_time_is_not_killed(started: Callable[..., Driver]) -> None:
    driver = started(Timeouts(unresponsive_s=1.0, kill_s=LIMIT_S))
    first = driver.pid("encode")
    os.kill(first, signal.SIGSTOP)
    (segment,) = segments_of("a", 1)
    driver.executor.submit("encode", segment)
    driver.until(lambda: driver.kinds("stalled") == ["stalled"])
    os.kill(first, signal.SIGCONT)
    driver.until(lambda: driver.kinds("back") == ["back"] and len(driver.completions) == 1)
    assert driver.kinds("stalled", "killed", "lost", "back") == ["stalled", "back"]
    assert "answers again" in driver.events[-1].message
    assert driver.pid("encode") == first


def test_a_store_that_stops_while_it_is_asked_is_killed(started: Callable[..., Driver]) -> None:
    """Check a query of a document in the middle of a job: the driver monitors the store while it waits for the
    answer."""
    driver = started()
    os.kill(driver.pid("put"), signal.SIGSTOP)
    key = DocumentKey("test", "a")
    assert driver.executor.stored(key) == []
    driver.until(lambda: driver.kinds("back") == ["back"])
    os.kill(driver.pid("put"), signal.SIGSTOP)
    driver.executor.delete(key)
    driver.until(lambda: len(driver.kinds("back")) == 2)
    assert driver.kinds("killed", "back") == ["killed", "back"] * 2
