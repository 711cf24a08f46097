"""What the driver does about workers that die, hang, stop or lose what they made: on real actors without a model."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from actors.policy import Patience
from longmem.errors import LongMemError, QuarantineError
from longmem.executor import STAGES, Completion, ExecutorEvent, Stage
from longmem.types import DocumentKey, Segment

pytest_plugins = ["tests.ray_cluster"]
pytestmark = pytest.mark.ray

QUICK = Patience(max_tries=3, silent_s=1.0, kill_s=2.0)
LIMIT_S = 60.0
"""When a test gives up."""


def segments_of(document: str, count: int) -> list[Segment]:
    tokens = np.arange(4, dtype=np.int32)
    return [Segment(DocumentKey("test", document), index, 4 * index, tokens, tokens) for index in range(count)]


@dataclass
class Driver:
    """An executor on scripted actors, and all that it has said."""

    executor: Any
    workers: Any
    script: Any
    completions: list[Completion] = field(default_factory=list)
    events: list[ExecutorEvent] = field(default_factory=list)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = monotonic() + LIMIT_S
        while not done():
            assert monotonic() < deadline, f"stuck after {self.events}"
            self.completions += self.executor.wait(0.2)
            self.events += self.executor.events()

    def run(self, stage: Stage, segments: list[Segment]) -> dict[int, LongMemError | None]:
        """Submit all, also beyond the slots; returns errors by segment."""
        for segment in segments:
            self.executor.submit(stage, segment)
        wanted = len(self.completions) + len(segments)
        self.until(lambda: len(self.completions) >= wanted)
        mine = self.completions[wanted - len(segments) :]
        assert Counter((each.stage, each.segment.index) for each in mine) == Counter(
            (stage, segment.index) for segment in segments
        )
        return {each.segment.index: each.error for each in mine}

    def pid(self, stage: Stage) -> int:
        pid: int = self.workers.by_stage()[stage].workers[0].info.pid
        return pid

    def kinds(self, *kinds: str) -> list[str]:
        return [event.kind for event in self.events if event.kind in kinds]


@pytest.fixture
def started(ray_cluster: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Driver]]:
    """`started(patience, deadly=…, encoders=2, …)`: an executor whose workers are all ready."""
    from actors.dispatch import PooledExecutor
    from actors.pool import ActorPool
    from actors.store import StorePool
    from actors.worker import NAMESPACE, RESTART
    from actors.workers import Workers
    from tests.scripted_workers import Script, ScriptedEncoder, ScriptedReader, ScriptedStore

    class Executor(PooledExecutor):
        def describe(self) -> Any:
            raise NotImplementedError

        def close(self) -> None:
            self._workers.stop()

    running = []

    def begin(patience: Patience = QUICK, *, encoders: int = 1, **places: Any) -> Driver:
        script = Script(tmp_path, **places)

        def pool(kind: Any, actor: Any, size: int) -> Any:
            names = [f"{request.node.name}-{actor.__class__.__name__}-{rank}" for rank in range(size)]
            options = {"namespace": NAMESPACE, "num_cpus": 0, **RESTART}
            return kind([actor.options(**options).remote(script) for _ in names], names)

        workers = Workers(
            pool(ActorPool, ScriptedEncoder, encoders),
            pool(StorePool, ScriptedStore, 1),
            pool(ActorPool, ScriptedReader, 1),
        )
        executor = Executor(workers, patience, lambda _stage, _opened: None)
        running.append(executor)
        driver = Driver(executor, workers, script)
        driver.until(lambda: vars(executor)["_supervisor"].num_starting == 0)
        vars(executor)["_supervisor"].begin()
        return driver

    yield begin
    for executor in running:
        executor.close()


# --- tasks that end their worker ---------------------------------------------------------------------------------


def test_a_poison_segment_is_set_aside_and_nobody_else_is_blamed(started: Callable[..., Driver]) -> None:
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
    assert len(driver.script.begun("encode", "poison", 1)) == 3
    blamed = [event for event in driver.events if event.kind in ("retry", "quarantined")]
    assert [event.kind for event in blamed] == ["retry", "retry", "quarantined"]
    assert {(event.segment.key.document, event.segment.index) for event in blamed if event.segment} == {("poison", 1)}
    assert len(driver.kinds("lost")) == 3
    assert driver.executor.wait(0.0) == []


def test_those_who_waited_behind_are_not_blamed(started: Callable[..., Driver]) -> None:
    """One worker and one try: whoever is blamed once is set aside."""
    driver = started(Patience(max_tries=1), deadly=frozenset({("encode", "a", 0)}))
    errors = driver.run("encode", segments_of("a", 4))
    assert [type(errors[index]) for index in range(4)] == [QuarantineError, type(None), type(None), type(None)]
    assert driver.kinds("retry", "quarantined") == ["quarantined"]


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
    driver = started(Patience(max_tries=2, task_s=1.0), endless=frozenset({("encode", "a", 0)}))
    errors = driver.run("encode", segments_of("a", 2))
    assert isinstance(errors[0], QuarantineError)
    assert errors[1] is None
    assert driver.kinds("killed", "lost") == ["killed", "lost"] * 2
    assert "more than 1 s" in next(event.message for event in driver.events if event.kind == "killed")


# --- workers that die or stop -----------------------------------------------------------------------------------


def test_workers_that_die_while_nothing_runs_come_back(started: Callable[..., Driver]) -> None:
    """No stage has slots meanwhile, so that a caller submits nothing and only waits."""
    driver = started()
    first = {stage: driver.pid(stage) for stage in STAGES}
    for pid in first.values():
        os.kill(pid, signal.SIGKILL)
    driver.until(lambda: len(driver.kinds("lost")) == 3)
    assert [driver.executor.slots(stage) for stage in STAGES] == [0, 0, 0]
    driver.until(lambda: all(driver.executor.slots(stage) == 2 for stage in STAGES))
    assert sorted(driver.kinds("lost", "back")) == ["back"] * 3 + ["lost"] * 3
    assert all(driver.pid(stage) != first[stage] for stage in STAGES)
    for stage in STAGES:
        assert driver.run(stage, segments_of("a", 2)) == {0: None, 1: None}


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
    driver = started(Patience(silent_s=1.0, kill_s=LIMIT_S))
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
    """What a document holds is asked in the middle of a job, and the driver watches while it waits for the answer."""
    driver = started()
    os.kill(driver.pid("put"), signal.SIGSTOP)
    key = DocumentKey("test", "a")
    assert driver.executor.stored(key) == []
    os.kill(driver.pid("put"), signal.SIGSTOP)
    driver.executor.forget(key)
    driver.until(lambda: len(driver.kinds("back")) == 2)
    assert driver.kinds("killed", "back") == ["killed", "back"] * 2


# --- blocks that are lost ---------------------------------------------------------------------------------------


def free(driver: Driver, segment: Segment) -> None:
    """Lose block and taps, as when the node that held them is gone."""
    from ray._private.internal_api import free

    encoded = vars(driver.executor)["_encoded"][segment.key, segment.index]
    free([encoded.block, encoded.taps], local_only=False)


def test_a_lost_block_is_encoded_again_once(started: Callable[..., Driver]) -> None:
    driver = started()
    segments = segments_of("a", 3)
    driver.run("encode", segments)
    free(driver, segments[1])
    for stage in ("put", "score"):
        for segment in segments:
            driver.executor.submit(stage, segment)
    wanted = 9
    driver.until(lambda: len(driver.completions) >= wanted)
    assert Counter((each.stage, each.segment.index) for each in driver.completions) == Counter(
        (stage, index) for stage in ("encode", "put", "score") for index in range(3)
    )
    assert all(each.error is None for each in driver.completions)
    assert driver.kinds("encoded again", "retry", "lost") == ["encoded again"]
    assert [len(driver.script.begun("encode", "a", index)) for index in range(3)] == [1, 2, 1]
    for segment in segments:
        driver.executor.release(segment)
    assert vars(driver.executor)["_encoded"] == vars(driver.executor)["_parked"] == {}


def test_a_lost_block_that_cannot_be_made_again_ends_its_tasks(started: Callable[..., Driver]) -> None:
    """The encoder died meanwhile of this very segment, until it was set aside: so are the tasks that waited for it."""
    driver = started(Patience(max_tries=1))
    (segment,) = segments_of("a", 1)
    driver.run("encode", [segment])
    free(driver, segment)
    os.kill(driver.pid("encode"), signal.SIGSTOP)
    driver.executor.submit("put", segment)
    driver.executor.submit("score", segment)
    driver.until(lambda: driver.kinds("encoded again") == ["encoded again"])
    driver.until(lambda: len(driver.completions) == 3)
    errors = {each.stage: each.error for each in driver.completions}
    assert errors["encode"] is None
    assert isinstance(errors["put"], QuarantineError)
    assert isinstance(errors["score"], QuarantineError)
