# SPDX-License-Identifier: Apache-2.0
"""Executor on the pools of a running service."""

from collections.abc import Callable

from actors.cluster import Connection, join, say_nothing
from actors.executor.dispatch import PooledExecutor
from actors.executor.timeouts import Timeouts
from actors.service.registry import Service, find_service
from longmem.errors import FingerprintError
from longmem.model.source import ModelDescription


class AttachedExecutor(PooledExecutor):
    """Executor on a service's workers, shared with other jobs and clients; `close` leaves the workers running.

    Each job sends at most two tasks to every worker, and workers run tasks in order of arrival, so all jobs advance at
    the same rate.

    Raises ClusterError when a worker has ended for good, FingerprintError when the service holds another model than
    the one that is offered.
    """

    def __init__(
        self,
        service: Service,
        connection: Connection,
        *,
        timeouts: Timeouts | None = None,
        offered: ModelDescription | None = None,
    ) -> None:
        self.service = service
        self.connection = connection
        self.workers = service.workers()
        super().__init__(self.workers, timeouts or service.shape.timeouts, connection=connection)
        # a service is complete, but a worker may be restarting
        self.begin(elastic=True)
        if offered is not None:
            check_model(self.describe(), offered, service.name)

    def close(self) -> None:
        """Disconnect. The pools finish tasks that were sent, and their results are ignored."""
        super().close()
        self.connection.close()


def attach(
    address: str,
    name: str,
    *,
    timeouts: Timeouts | None = None,
    offered: ModelDescription | None = None,
    tell: Callable[[str], None] = say_nothing,
) -> AttachedExecutor:
    """Join the cluster, describe it to `tell`, and attach to a service.

    Raises ClusterError when there is no such cluster or service, FingerprintError when it holds another model than
    `offered`.
    """
    connection = join(address, tell)
    try:
        with connection.watch.explaining():
            return AttachedExecutor(find_service(name), connection, timeouts=timeouts, offered=offered)
    except BaseException:
        connection.close()
        raise


def check_model(held: ModelDescription, offered: ModelDescription, service: str) -> None:
    """Raise FingerprintError unless both models give the same numbers."""
    mine, theirs = ({**vars(each.fingerprint), "sidenet": each.sidenet, **each.settings} for each in (held, offered))
    differences = [f"{key}: {value!r} != {theirs[key]!r}" for key, value in mine.items() if value != theirs[key]]
    if differences:
        raise FingerprintError(
            f"service {service!r} holds another model (held != offered): {'; '.join(differences)}; use "
            "the one that it holds (leave out --model), or start another service"
        )
