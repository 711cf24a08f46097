# SPDX-License-Identifier: Apache-2.0
"""Deadlines of the supervisor under a fake clock. Needs no running Ray.

Tests with real processes that die or stop are in tests/fault/test_dispatch.py.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest

import actors.executor.health
from actors.executor.health import ORPHAN_S, Supervisor
from actors.executor.tasks import RequestTask
from actors.executor.timeouts import Timeouts
from actors.workers.base import WorkerInfo
from actors.workers.pools import ActorPool, PoolWorker
from actors.workers.running import Alive, Ticket
from actors.workers.store import StorePool
from longmem.errors import ClusterError, ConfigError
from longmem.runtime.executor import Stage
from longmem.runtime.steps import Step


class Call:
    """Method of an actor that never answers."""

    def remote(self) -> object:
        return object()


class Silent:
    """Actor that never answers."""

    ready = alive = Call()


@dataclass
class Watch:
    """Supervisor of `sizes` workers that are all ready, and its clock."""

    supervisor: Supervisor
    pools: dict[Stage, ActorPool]
    killed: list[WorkerInfo]
    now: list[float] = field(default_factory=lambda: [100.0])
    running: Ticket | Literal["silent"] | None = "silent"
    """Answer of all workers to liveness checks."""

    pid: int = 1
    """Process that answers."""

    @property
    def answer(self) -> Alive:
        assert self.running != "silent"
        return Alive(self.pid, 0.0, "node", self.running)

    def worker(self, stage: Stage = "encode", rank: int = 0) -> PoolWorker:
        return self.pools[stage].workers[rank]

    def after(self, seconds: float, step: float = 1.0) -> list[str]:
        """Return the kinds of events while `check` is called every `step` seconds."""
        for _ in range(round(seconds / step)):
            self.now[0] += step
            self.supervisor.check()
            if self.running != "silent":
                for ref in list(vars(self.supervisor)["_pings"]):
                    self.supervisor.take(ref)
        kinds = [event.kind for event in self.supervisor.events]
        self.supervisor.events.clear()
        return kinds


def watch(monkeypatch: pytest.MonkeyPatch, timeouts: Timeouts, encoders: int = 1, stores: int = 1) -> Watch:
    killed: list[WorkerInfo] = []

    def kill(info: WorkerInfo) -> object:
        killed.append(info)
        return object()

    monkeypatch.setattr(actors.executor.health, "kill_process", kill)
    sizes: list[tuple[Stage, Any, int]] = [("encode", ActorPool, encoders), ("put", StorePool, stores)]
    pools = {stage: kind([Silent()] * size, [f"{stage}-{rank}" for rank in range(size)]) for stage, kind, size in sizes}
    now = [100.0]
    supervisor = Supervisor(pools, timeouts, lambda _stage, _result: None, "mine", lambda: now[0])
    watching = Watch(supervisor, pools, killed, now)
    for pool in pools.values():
        for worker in pool.workers:
            worker.info = WorkerInfo(pid=1, created_s=0.0, node_id="node", result=worker.name)
    monkeypatch.setattr(actors.executor.health.ray, "get", lambda _ref: watching.answer)
    return watching


def test_silence_is_told_once_and_then_killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, Timeouts(unresponsive_s=10, kill_s=20), encoders=2)
    assert seen.after(5) == []
    # asked after 5 s, and silent since
    assert seen.after(10) == []
    assert seen.after(1) == ["stalled"] * 3
    assert seen.after(9) == []
    assert seen.after(1) == ["killed"] * 3
    assert seen.after(60) == []
    assert [info.result for info in seen.killed] == ["encode-0", "encode-1", "put-0"]


def test_a_worker_that_starts_again_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a restarted worker: probes of its previous process do not count for the new one, which is probed itself."""
    seen = watch(monkeypatch, Timeouts(unresponsive_s=10, kill_s=20, no_worker_s=1000))
    seen.after(6)
    for pool in seen.pools.values():
        for worker in pool.workers:
            worker.info = WorkerInfo(pid=2, created_s=1.0, node_id="node", result=worker.name)
    assert seen.after(13) == []
    assert seen.after(10) == ["stalled"] * 2
    assert seen.killed == []


def test_supervision_driver_suspended_shifts_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a driver that was suspended for an hour: its probes look an hour old, and all deadlines shift."""
    seen = watch(monkeypatch, Timeouts(unresponsive_s=10, kill_s=20, task_s=30, no_worker_s=60))
    seen.worker().tasks.append(object())
    seen.worker().first_since_s = 100.0
    seen.after(6)
    assert seen.after(3600, step=3600) == []
    assert seen.after(9) == []
    assert seen.after(1) == ["stalled"] * 2


@pytest.mark.parametrize(
    ("running", "limit_s"),
    [(Ticket("mine", 1, 30), 30), (Ticket("other", 1, 50), 50 + ORPHAN_S), (None, 100)],
    ids=["own", "of another job", "none, a call without a deadline"],
)
def test_what_runs_has_a_deadline_and_a_worker_without_tasks_has_none(
    monkeypatch: pytest.MonkeyPatch, running: Ticket | None, limit_s: float
) -> None:
    seen = watch(monkeypatch, Timeouts(task_s=100, unresponsive_s=10, kill_s=20), encoders=2)
    seen.running = running
    seen.worker(rank=1).tasks.append(object())
    seen.worker(rank=1).first_since_s = 100.0
    # a running task is first seen by the first liveness check, after 5 s
    seen_s = 0 if running is None else 5
    assert seen.after(seen_s + limit_s) == []
    assert seen.after(6) == ["killed"]
    assert seen.after(200) == []
    assert [info.result for info in seen.killed] == ["encode-1"]


@pytest.mark.parametrize("running", [Ticket("mine", 1, 30), None], ids=["own", "none"])
def test_supervision_answer_handled_late_is_no_evidence_of_now(
    monkeypatch: pytest.MonkeyPatch, running: Ticket | None
) -> None:
    """Check a driver that handles an answer 40 s after its check: the worker was not overdue when it was asked."""
    seen = watch(monkeypatch, Timeouts(task_s=30, unresponsive_s=50, kill_s=60))
    worker = seen.worker()
    worker.tasks.append(object())
    seen.after(5)
    worker.running, worker.running_since_s = running, 105.0
    worker.first_since_s = 105.0
    # steps below those of a suspended process
    assert seen.after(40) == []
    seen.running = running
    assert seen.after(1) == []
    assert seen.after(5) == ["killed"]


def test_a_step_of_a_running_request_reaches_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, steps = watch(monkeypatch, Timeouts()), list[Step]()
    tasks = [RequestTask("encode", number, SimpleNamespace(), steps.append) for number in (1, 2)]  # type: ignore[arg-type]
    for number, task in enumerate(tasks, 1):
        task.ticket = Ticket("mine", number, 30)
    seen.worker().tasks = list(tasks)
    step = Step("segments", "encoded", 3, 8)
    for running in (tasks[0].ticket, Ticket("other", 1, 30, step), Ticket("mine", 1, 30, step)):
        assert steps == []
        seen.running = running
        seen.after(5)
    assert steps == [step]


def test_a_step_does_not_extend_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, Timeouts())
    seen.worker().tasks = [SimpleNamespace(ticket=None)]
    for done in range(5):
        seen.running = Ticket("mine", 1, 21, Step("segments", "encoded", done, 8))
        assert seen.after(5) == []
    assert seen.after(6) == ["killed"]


@pytest.mark.parametrize("is_idle", [True, False])
def test_supervision_answer_of_the_next_process_is_none_of_the_last(
    monkeypatch: pytest.MonkeyPatch, is_idle: bool
) -> None:
    """Check a worker that was restarted before a lost call is told, or between two checks of an idle worker: its new
    process has not begun the task, and is made ready before it gets one."""
    seen = watch(monkeypatch, Timeouts(task_s=30, unresponsive_s=50, kill_s=60, no_worker_s=1000))
    if not is_idle:
        seen.worker().tasks.append(SimpleNamespace(sent_to=seen.worker().info))
    seen.worker().first_since_s = 100.0
    starting = seen.supervisor.num_starting
    seen.running, seen.pid = None, 2
    assert seen.after(60) == ["lost"] * 2
    assert [seen.worker(stage).info for stage in ("encode", "put")] == [None, None]
    assert seen.supervisor.num_starting == starting + 2
    assert seen.killed == []


@pytest.mark.parametrize(("job", "killed"), [("mine", [2]), ("other", [])])
def test_supervision_next_process_that_took_a_task_before_it_was_ready_is_killed(
    monkeypatch: pytest.MonkeyPatch, job: str, killed: list[int]
) -> None:
    """Check a task that was sent before the loss was noticed: `ready` waits behind it, and it has no deadline."""
    seen = watch(monkeypatch, Timeouts(unresponsive_s=50, kill_s=60, no_worker_s=1000), stores=0)
    seen.running, seen.pid = Ticket(job, 1, 30), 2
    assert seen.after(60) == ["lost"]
    assert [info.pid for info in seen.killed] == killed


def test_supervision_no_worker_answers_again_for_its_last_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, Timeouts(unresponsive_s=10, kill_s=20))
    assert seen.after(16) == ["stalled"] * 2
    seen.running, seen.pid = None, 2
    assert seen.after(1) == ["lost"] * 2


def test_a_stage_without_workers_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, Timeouts(no_worker_s=60, unresponsive_s=1e6, kill_s=1e6), encoders=2)
    seen.worker(rank=0).info = None
    seen.after(100)
    info, seen.worker(rank=1).info = seen.worker(rank=1).info, None
    seen.after(50)
    seen.worker(rank=1).info = info
    seen.after(1)
    seen.worker(rank=1).info = None
    seen.after(60)
    with pytest.raises(ClusterError, match=r"no worker for encode for 60 s.*--resume"):
        seen.after(2)


def test_every_store_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a document belongs to one store, and no other store can replace it."""
    seen = watch(monkeypatch, Timeouts(no_worker_s=60, unresponsive_s=1e6, kill_s=1e6), stores=2)
    seen.worker("put", 1).info = None
    with pytest.raises(ClusterError, match="no worker for put for 60 s"):
        seen.after(63)


@pytest.mark.parametrize(
    "wrong", [{"max_tries": 0}, {"task_s": -1.0}, {"unresponsive_s": 10.0, "kill_s": 9.0}, {"no_worker_s": 0.0}]
)
def test_timeouts_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Timeouts(**wrong)


@pytest.mark.parametrize(("num_tasks", "crash_suspect"), [(0, None), (1, 0), (2, None)])
def test_who_ended_a_worker_is_known_only_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, num_tasks: int, crash_suspect: int | None
) -> None:
    """Check the suspect where no record tells what ran: with two tasks it is ambiguous."""
    seen = watch(monkeypatch, Timeouts())
    worker = seen.worker()
    tasks = [SimpleNamespace(sent_to=worker.info) for _ in range(num_tasks)]
    # one sent to a previous process, whose failure has not been reported
    worker.tasks = [SimpleNamespace(sent_to=None), *tasks]
    seen.supervisor.lost("encode", worker, RuntimeError("died"))
    assert worker.crash_suspect is (None if crash_suspect is None else tasks[crash_suspect])
