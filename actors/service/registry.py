# SPDX-License-Identifier: Apache-2.0
"""Long-lived services: detached pools that many jobs and clients share, and one actor that describes them.

    longmem-service-<name>              description of the service; created last, so it implies the workers
    longmem-service-<name>-encoder-0 …  its workers, as in any job

Needs a joined Ray (`actors.cluster.join`). Actor names are the only record: any process finds a service by them.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic, sleep, time
from typing import Any

import ray
import ray.exceptions

from actors.capacity import FEWER, Room
from actors.cluster import Connection, join, say_nothing
from actors.config import ClusterShape
from actors.errors import translated
from actors.executor.dispatch import PooledExecutor
from actors.executor.timeouts import Timeouts
from actors.workers.base import NAMESPACE
from actors.workers.pools import ActorPool
from actors.workers.start import Workers, names_of, start_workers
from actors.workers.store import StorePool
from longmem.errors import ClusterError, ConfigError
from longmem.model.source import ModelSource
from longmem.store.config import IN_MEMORY, StoreSettings
from longmem.system.redaction import redacted

DEFAULT_NAME = "longmem"
PREFIX = "longmem-service-"
ANSWER_S = 30.0
"""Timeout of the actor that describes a service, in seconds; it may be restarting."""
ALIVE_S = 15.0
"""Timeout of a worker's liveness answer, in seconds."""
ENDED_S = 30.0
"""Timeout of the exit of killed actors, in seconds."""
WORKER = re.compile(r"-(encoder|store|sidenet)-\d+$")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Service:
    """Model, store and size of a service. Raises ConfigError for an invalid name."""

    name: str
    source: ModelSource
    store: StoreSettings
    """Store of the service. A folder has an absolute path, on the node where the service was started."""
    shape: ClusterShape
    since_s: float = 0.0
    """Unix time at which it was complete."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.shape.readers < 1:
            raise ConfigError(f"readers must be at least 1, got {self.shape.readers}: they score segments")
        if self.store.uri == IN_MEMORY:
            raise ConfigError(
                f"a service cannot keep its memory in {IN_MEMORY}, which ends with a process; name a folder"
            )

    @property
    def actor_names(self) -> dict[str, list[str]]:
        """Names of its workers by role: encoder, store, reader."""
        return names_of(PREFIX + self.name, self.shape)

    def workers(self) -> Workers:
        """Return handles of all workers. Raises ClusterError when one has ended."""
        found = {kind: [_actor(name, self.name) for name in names] for kind, names in self.actor_names.items()}
        names = self.actor_names
        return Workers(
            ActorPool(found["encoder"], names["encoder"]),
            StorePool(found["store"], names["store"]),
            ActorPool(found["reader"], names["reader"]),
        )

    def differences(self, other: "Service") -> str:
        """Return the settings in which two services differ, as `name: mine != theirs; …`.

        The driver's address and timeouts are not settings of the service.
        """
        mine, theirs = _settings(self), _settings(other)
        return "; ".join(f"{name}: {mine[name]!r} != {theirs[name]!r}" for name in mine if mine[name] != theirs[name])


@dataclass(frozen=True)
class ServiceState:
    """State of a service. One whose start was interrupted has workers and no description."""

    name: str
    service: Service | None
    workers: tuple[str, ...]
    """Names of the existing workers."""
    unresponsive: tuple[str, ...]
    """Names of the workers that did not answer."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ServiceActor:
    """Actor that describes the service. Its only state is the constructor argument, so a restart loses nothing."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __repr__(self) -> str:
        return f"Service(name={self._service.name}, model={redacted(self._service.source.source)})"

    def describe(self) -> Service:
        return self._service


def check_name(name: str) -> None:
    """Raise ConfigError unless the name is valid in actor names and does not end like that of a worker."""
    if not NAME.fullmatch(name) or WORKER.search(name):
        raise ConfigError(
            f"a service's name must be letters, digits, '_', '.' and '-', and not end like a worker's, got {name!r}"
        )


def start_service(service: Service, tell: Callable[[str], None] = say_nothing) -> tuple[Service, bool]:
    """Start the pools and wait until they are ready. Return the running service, and True if this call started it.

    `tell` receives messages for the operator. A service that runs with the same settings is left as it is. Raises
    ClusterError when it runs with other settings, when an interrupted start left workers, or when the cluster is too
    small. Raises the error of a worker that cannot open the model or the store, after ending all workers.
    """
    if _exists(PREFIX + service.name):
        running = find_service(service.name)
        if differences := service.differences(running):
            raise ClusterError(
                f"service {service.name!r} runs with other settings (asked for != running): {differences}; take it "
                "down first, or choose another name"
            )
        return running, False
    if left := _worker_names(service.name):
        raise _half_started(service.name, left)
    # the process has joined already: this connection only detects the loss of the cluster
    connection = join(service.shape.address)
    try:
        with connection.watch.explaining():
            return _start_pools(service, connection, tell), True
    finally:
        connection.close()


def _start_pools(service: Service, connection: Connection, tell: Callable[[str], None]) -> Service:
    shape = service.shape
    room = Room(shape.min_cpus, shape.min_gpus, shape.timeouts.no_worker_s, tell, f"use fewer {FEWER}")
    try:
        workers = start_workers(service.source, service.store, service.shape, PREFIX + service.name, detached=True)
    except ValueError as error:
        # Ray's error for a name that is taken; the stores come first, so nothing was created by this call
        raise ClusterError(f"service {service.name!r} is being started by another process: {error}") from error
    try:
        executor = PooledExecutor(workers, shape.timeouts, connection=connection)
        executor.begin(shape.elastic, room)
        complete = replace(service, since_s=time())
        kind: Any = ServiceActor
        actor = kind.options(name=PREFIX + service.name, namespace=NAMESPACE, lifetime="detached").remote(complete)
        with translated(f"starting service {service.name!r}"):
            ray.get(actor.describe.remote())
    except BaseException:
        if not connection.watch.lost:
            _end([PREFIX + service.name, *(name for names in service.actor_names.values() for name in names)])
        raise
    return complete


def find_service(name: str) -> Service:
    """Return a running service. Raises ClusterError, which names all services, if there is none of that name, or if its
    start was interrupted."""
    check_name(name)
    try:
        actor = ray.get_actor(PREFIX + name, namespace=NAMESPACE)
    except ValueError:
        if left := _worker_names(name):
            raise _half_started(name, left) from None
        others = ", ".join(state.name for state in list_services()) or "none"
        raise ClusterError(
            f"there is no service {name!r} on this cluster (there is: {others}); start it with `longmem service up`"
        ) from None
    with translated(f"asking service {name!r} what it is"):
        service: Service = ray.get(actor.describe.remote(), timeout=ANSWER_S)
    return service


def list_services() -> list[ServiceState]:
    """Return all services of the cluster by name, including those whose start was interrupted."""
    names = [name.removeprefix(PREFIX) for name in _actor_names() if name.startswith(PREFIX)]
    return [service_state(name) for name in sorted({WORKER.sub("", name) for name in names})]


def service_state(name: str) -> ServiceState:
    """Return the state of a service. Raises ClusterError if neither description nor workers exist."""
    names = _worker_names(name)
    service = find_service(name) if _exists(PREFIX + name) else None
    if service is None and not names:
        find_service(name)
    asked = {ray.get_actor(each, namespace=NAMESPACE).alive.remote(): each for each in names}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ALIVE_S) if asked else ([], [])
    answered = {asked[ref] for ref in ready if _answered(ref)}
    return ServiceState(name, service, tuple(names), tuple(each for each in names if each not in answered))


def stop_service(name: str, drain_s: float = 60.0) -> tuple[str, ...]:
    """End a complete or half-started service, and return the names of all ended actors.

    First the description goes, so that no client can attach. Then running writes end and the stores close their files,
    within `drain_s`. Finally all actors are killed. Stored blocks stay. Raises ClusterError when there is no such
    service, or when an actor does not end.
    """
    check_name(name)
    workers = _worker_names(name)
    if not workers and not _exists(PREFIX + name):
        find_service(name)
    registry = [PREFIX + name] if _exists(PREFIX + name) else []
    _end(registry)
    closing = []
    for each in workers:
        if each.startswith(f"{PREFIX}{name}-store-"):
            with suppress(ValueError):
                closing.append(ray.get_actor(each, namespace=NAMESPACE).close.remote())
    if closing:
        # a lost store has no open files
        ray.wait(closing, num_returns=len(closing), timeout=drain_s)
    _end(workers)
    return (*registry, *workers)


def _end(names: list[str]) -> None:
    """Kill actors, and wait until their names are free."""
    for name in names:
        with suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    deadline_s = monotonic() + ENDED_S
    while left := sorted(set(names) & set(_actor_names())):
        if monotonic() > deadline_s:
            raise ClusterError(f"{', '.join(left)} did not end within {ENDED_S:g} s; see the Ray dashboard")
        sleep(0.05)


def _actor_names() -> list[str]:
    with translated("listing the cluster's actors"):
        found = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in found if each["namespace"] == NAMESPACE]


def _worker_names(name: str) -> list[str]:
    prefix = PREFIX + name
    return sorted(each for each in _actor_names() if each.startswith(prefix) and WORKER.fullmatch(each[len(prefix) :]))


def _exists(actor_name: str) -> bool:
    return actor_name in _actor_names()


def _actor(actor_name: str, service: str) -> ray.actor.ActorHandle:
    try:
        return ray.get_actor(actor_name, namespace=NAMESPACE)
    except ValueError:
        raise ClusterError(
            f"service {service!r} lacks {actor_name}, which has ended for good; take it down and start it again"
        ) from None


def _answered(ref: ray.ObjectRef) -> bool:
    try:
        ray.get(ref)
    except ray.exceptions.RayError:
        return False
    return True


def _half_started(name: str, left: list[str]) -> ClusterError:
    return ClusterError(
        f"service {name!r} is being started, or its start was interrupted: it has {', '.join(left)} and no "
        f"description; wait, or end them with `longmem service down --name {name}`"
    )


def _settings(service: Service) -> dict[str, object]:
    shape = replace(service.shape, address="auto", object_store_bytes=0, timeouts=Timeouts())
    return {"model": service.source, "store": service.store, **vars(shape)}
