# SPDX-License-Identifier: Apache-2.0
"""Actor that exports a job's metrics and answers `longmem status`, and the job's connection to it.

Metrics need an actor, because the driver of a `ray://` address is not a Ray worker and cannot export any.

No increment is counted twice. The job sends the present and the previous snapshot, and the actor adds the difference,
so that a restarted actor needs no state. A message that may have been lost is not resent: its increments are missing
from the counters, as are those that a killed actor had not exported yet (Ray exports every 10 s).
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import ray
import ray.exceptions
from ray.util.metrics import Counter, Gauge, Histogram

from actors.monitoring.job_status import JobSnapshot
from actors.monitoring.metrics import (
    METRICS,
    OBJECT_STORE_BYTES,
    OBJECT_STORE_LIMIT_BYTES,
    TASK_SECONDS,
    increments,
    levels,
)
from actors.workers.base import NAMESPACE
from longmem.errors import ClusterError
from longmem.stages import Stage

NAME = re.compile("longmem-job-[0-9a-f]+")
"""Name of a monitor. Workers of a job have a suffix."""
PUSH_S = 1.0
"""Minimum seconds between two messages."""
END_S = 5.0
"""Seconds that an ending job waits for the delivery of its last message."""
NAME_FREE_S = 20.0
"""Seconds that a resumed job waits until the monitor of its killed predecessor is gone."""

TaskSeconds = Mapping[Stage, Sequence[float]]


def actor_name(job_id: str) -> str:
    return f"longmem-job-{job_id}"


@ray.remote(num_cpus=0)
class JobMonitor:
    """Holds a job's last snapshot and exports its metrics."""

    def __init__(self, job_id: str, name: str) -> None:
        self._title = f"JobMonitor(job={job_id}, name={name})"
        self._latest: JobSnapshot | None = None
        classes = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        self._metrics: dict[str, Any] = {
            each.name: classes[each.kind](
                each.name,
                description=each.description,
                tag_keys=each.labels,
                **({"boundaries": list(each.boundaries)} if each.boundaries else {}),
            )
            for each in METRICS
        }

    def __repr__(self) -> str:
        return self._title

    def push(self, snapshot: JobSnapshot, since: JobSnapshot | None, task_seconds: TaskSeconds) -> None:
        """Export the changes since the previous snapshot."""
        for (name, labels), value in increments(snapshot, since).items():
            # not `inc`, which refuses 0: a counter that first appears at 1 hides that 1 from `increase()`
            self._metrics[name]._record(float(value), dict(labels))
        for (name, labels), value in levels(snapshot):
            self._metrics[name].set(value, dict(labels))
        for stage, durations in task_seconds.items():
            for seconds in durations:
                self._metrics[TASK_SECONDS].observe(seconds, {"stage": stage})
        total = ray.cluster_resources().get("object_store_memory", 0.0)
        free = ray.available_resources().get("object_store_memory", 0.0)
        self._metrics[OBJECT_STORE_BYTES].set(total - free)
        self._metrics[OBJECT_STORE_LIMIT_BYTES].set(total)
        self._latest = snapshot

    def latest(self) -> JobSnapshot | None:
        """Return the last snapshot, or None before the first one."""
        return self._latest


class MonitorLine:
    """The job's connection to its monitor: sends snapshots without waiting, one at a time. Ray must be initialised.

    A monitor that hangs or dies does not delay the job. Raises ClusterError when another running job has its name.
    """

    def __init__(self, job_id: str, name: str) -> None:
        self._sent: JobSnapshot | None = None
        self._task_seconds: dict[Stage, list[float]] = {}
        self._pending: Any = None
        self._last_push = -PUSH_S
        options = {"name": actor_name(job_id), "namespace": NAMESPACE, "max_restarts": -1, "max_task_retries": 0}
        deadline = monotonic() + NAME_FREE_S
        while True:
            try:
                self._actor = JobMonitor.options(**options).remote(job_id, name)  # type: ignore[attr-defined]
                return
            except ValueError as error:
                # this process has locked the job's folder, so the actor of that name belongs to a dead job
                _kill(actor_name(job_id))
                if monotonic() > deadline:
                    raise ClusterError(f"the name {actor_name(job_id)} is still taken: {error}") from error
                sleep(0.2)

    def task(self, stage: Stage, busy_s: float) -> None:
        """Record the duration of a task."""
        self._task_seconds.setdefault(stage, []).append(busy_s)

    @property
    def is_due(self) -> bool:
        """True if the last message has arrived and was sent at least PUSH_S ago."""
        return monotonic() - self._last_push >= PUSH_S and not self._on_its_way()

    def push(self, snapshot: JobSnapshot) -> None:
        """Send a snapshot."""
        self._pending = self._actor.push.remote(snapshot, self._sent, self._task_seconds)
        self._sent = snapshot
        self._task_seconds = {}
        self._last_push = monotonic()

    def abandon(self) -> None:
        """Send nothing more. For a lost cluster, whose calls would block without an answer."""
        self._pending = None

    def close(self, snapshot: JobSnapshot) -> None:
        """Send the last snapshot and end the actor, which exports its metrics before it exits."""
        # a lost cluster has no monitor, and the cause of the job's end matters more
        with suppress(ray.exceptions.RayError, ConnectionError):
            if self._on_its_way():
                ray.wait([self._pending], timeout=END_S)
            if not self._on_its_way():
                self.push(snapshot)
                ray.wait([self._pending], timeout=END_S)
            ray.kill(self._actor)

    def _on_its_way(self) -> bool:
        return self._pending is not None and not ray.wait([self._pending], timeout=0)[0]


def _kill(name: str) -> None:
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    except ValueError:
        return  # gone meanwhile
