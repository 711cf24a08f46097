"""A long-lived service: detached pools that many jobs and clients share, and one actor that says what they are.

    longmem-service-<name>              what the service holds; created last: once it is there, so is the rest
    longmem-service-<name>-encoder-0 …  its workers, as in any job

Needs a Ray that is joined (`actors.cluster.join`). Names are the only truth: any process finds a service by them.
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
"""How long the actor that describes a service may take; it may be starting again."""
ALIVE_S = 15.0
"""How long a worker may take to say that it lives."""
ENDED_S = 30.0
"""How long actors may take to be gone after they were killed."""
WORKER = re.compile(r"-(encoder|store|sidenet)-\d+$")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a service holds. Raises ConfigError for a name that cannot be one."""

    name: str
    source: ModelSource
    store: StoreSettings
    """Its place is absolute where it is a folder, which is on the node where the service was started."""
    shape: ClusterShape
    since_s: float = 0.0
    """Seconds since 1970 at which it was complete."""

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
        """Names of its workers by kind: encoder, store, sidenet."""
        return names_of(PREFIX + self.name, self.shape)

    def workers(self) -> Workers:
        """Handles of all workers. Raises ClusterError when one is not there."""
        found = {kind: [_actor(name, self.name) for name in names] for kind, names in self.actor_names.items()}
        names = self.actor_names
        return Workers(
            ActorPool(found["encoder"], names["encoder"]),
            StorePool(found["store"], names["store"]),
            ActorPool(found["sidenet"], names["sidenet"]),
        )

    def differences(self, other: "Service") -> str:
        """Settings in which two services differ, as `name: mine != theirs; …`; how a driver reached Ray, and how
        patient it was, are not settings of the service."""
        mine, theirs = _settings(self), _settings(other)
        return "; ".join(f"{name}: {mine[name]!r} != {theirs[name]!r}" for name in mine if mine[name] != theirs[name])


@dataclass(frozen=True)
class ServiceState:
    """A service as it is found: also one whose start was interrupted, which has workers and no description."""

    name: str
    service: Service | None
    workers: tuple[str, ...]
    """Names of those that are there."""
    silent: tuple[str, ...]
    """Names of those that gave no sign of life."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ServiceActor:
    """Says what the service is. Started again, it is what it was: it holds only what its constructor was given."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __repr__(self) -> str:
        return f"Service(name={self._service.name}, model={redacted(self._service.source.source)})"

    def describe(self) -> Service:
        return self._service


def check_name(name: str) -> None:
    """Raises ConfigError unless the name can be part of actors' names, and is not one of a worker."""
    if not NAME.fullmatch(name) or WORKER.search(name):
        raise ConfigError(
            f"a service's name must be letters, digits, '_', '.' and '-', and not end like a worker's, got {name!r}"
        )


def start_service(service: Service, tell: Callable[[str], None] = say_nothing) -> tuple[Service, bool]:
    """Start the pools and wait until they are ready; returns what runs, and whether it was started by this call. `tell`
    gets what an operator should know meanwhile.

    A service that runs with the same settings is left as it is. Raises ClusterError when it runs with others, when an
    interrupted start left workers, or when the cluster is too small, and what a worker raises that cannot open the
    model or the store: then nothing is left behind.
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
    # joined already: this one only tells when the cluster is lost
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
        # Ray's word for a name that is taken; a store is the first of all, so nothing of ours was created
        raise ClusterError(f"service {service.name!r} is being started by somebody else: {error}") from error
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
    """Raises ClusterError when there is no such service, saying which there are, or when its start was interrupted."""
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
    """All services of the cluster by name, also those whose start was interrupted."""
    names = [name.removeprefix(PREFIX) for name in _actor_names() if name.startswith(PREFIX)]
    return [service_state(name) for name in sorted({WORKER.sub("", name) for name in names})]


def service_state(name: str) -> ServiceState:
    """What is there of a service now. Raises ClusterError when nothing is."""
    names = _worker_names(name)
    service = find_service(name) if _exists(PREFIX + name) else None
    if service is None and not names:
        find_service(name)
    asked = {ray.get_actor(each, namespace=NAMESPACE).alive.remote(): each for each in names}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ALIVE_S) if asked else ([], [])
    answered = {asked[ref] for ref in ready if _answered(ref)}
    return ServiceState(name, service, tuple(names), tuple(each for each in names if each not in answered))


def stop_service(name: str, drain_s: float = 60.0) -> tuple[str, ...]:
    """End a service, whole or half started; returns the names of all actors that were ended.

    Nobody can attach any more, then writes that have begun end and the stores close their files, then all actors are
    killed. What was stored stays. Raises ClusterError when there is none, or when an actor does not end.
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
        # one that is lost has no file open
        ray.wait(closing, num_returns=len(closing), timeout=drain_s)
    _end(workers)
    return (*registry, *workers)


def _end(names: list[str]) -> None:
    """Kill actors, and wait until their names are free again."""
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
        f"service {name!r} is being started, or its start was interrupted: it has {', '.join(left)} and nothing that "
        f"describes them; wait, or end them with `longmem service down --name {name}`"
    )


def _settings(service: Service) -> dict[str, object]:
    shape = replace(service.shape, address="auto", object_store_bytes=0, timeouts=Timeouts())
    return {"model": service.source, "store": service.store, **vars(shape)}
