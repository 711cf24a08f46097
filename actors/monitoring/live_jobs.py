# SPDX-License-Identifier: Apache-2.0
"""Status of the jobs that run on a cluster, for `longmem status`."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import ray
import ray.exceptions
import ray.util

from actors.cluster import Connection, find_cluster, join, say_nothing
from actors.config import AUTO
from actors.monitoring.job_status import JobSnapshot
from actors.monitoring.monitor_actor import NAME
from actors.workers.base import NAMESPACE

ANSWER_S = 5.0
"""Timeout of a monitor's answer, in seconds."""


class LiveJobs:
    """A connection to a cluster for repeated queries; `tell` is called with a description of the cluster.

    Raises ClusterError when `address` cannot be reached, and when the cluster is lost.
    """

    def __init__(self, address: str, tell: Callable[[str], None] = say_nothing) -> None:
        found = find_cluster() if address == AUTO else address
        self._connection: Connection | None = None
        if found is not None:
            self._connection = join(found, tell)

    @property
    def connected(self) -> bool:
        """False if the address was `auto` and no cluster runs."""
        return self._connection is not None

    def snapshots(self) -> list[JobSnapshot]:
        """Return the last snapshot of every job, oldest job first. Monitors that do not answer are left out."""
        if self._connection is None:
            return []
        with self._connection.watch.explaining():
            return self._ask()

    def _ask(self) -> list[JobSnapshot]:
        asked = [actor.latest.remote() for actor in _monitors()]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        snapshots = [snapshot for reference in answered if (snapshot := _answer(reference)) is not None]
        return sorted(snapshots, key=lambda each: each.started)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()


def _monitors() -> list["ray.actor.ActorHandle"]:
    actors = []
    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["namespace"] == NAMESPACE and NAME.fullmatch(each["name"]):
            try:
                actors.append(ray.get_actor(each["name"], namespace=NAMESPACE))
            except ValueError:
                continue  # its job ended after it was listed
    return actors


def _answer(reference: Any) -> JobSnapshot | None:
    try:
        snapshot: JobSnapshot | None = ray.get(reference)
    except ray.exceptions.RayActorError:
        return None  # its job ended after it was asked
    return snapshot
