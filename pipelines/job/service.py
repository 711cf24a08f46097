"""A job on a service: its model, its store and its pools are those of the service."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.model.source import ModelSource, describe
from longmem.runtime.executor import AbstractExecutor
from longmem.store.config import StoreSettings

if TYPE_CHECKING:
    from actors.executor.timeouts import Timeouts

SEGMENTS_PER_WORKER = 4
"""How many segments of a job may be in flight for each worker where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class ServiceChoice:
    """Which service a job runs on. Raises ConfigError for an address where none can be."""

    name: str
    address: str = "auto"
    offered: ModelSource | None = None
    """A model that the service must hold; None takes the one that it holds."""
    limits_given: bool = False
    """False where the job's limit of segments is only a default, which then follows the size of the service."""

    def __post_init__(self) -> None:
        if self.address in ("none", "local"):
            raise ConfigError(f"--service needs a cluster that runs already, not --address {self.address}")


@dataclass(frozen=True, kw_only=True)
class ServiceParts:
    """What a service decides for all its jobs."""

    model: ModelSource
    store: StoreSettings
    cluster: ClusterShape

    @property
    def in_flight_segments(self) -> int:
        """Encoded segments of one job that may wait, where the job does not say."""
        return SEGMENTS_PER_WORKER * (self.cluster.encoders + self.cluster.readers)


def find_parts(choice: ServiceChoice, timeouts: "Timeouts | None" = None) -> ServiceParts:
    """Ask the cluster for a service; `timeouts` are those of the job. Raises ClusterError where there is none."""
    from actors.cluster import join
    from actors.service.registry import find_service

    connection = join(choice.address)
    try:
        service = find_service(choice.name)
    finally:
        connection.close()
    shape = replace(service.shape, address=choice.address, timeouts=timeouts or service.shape.timeouts)
    return ServiceParts(model=service.source, store=service.store, cluster=shape)


def attach_to(choice: ServiceChoice, cluster: ClusterShape | None, tell: Callable[[str], None]) -> AbstractExecutor:
    """Return an executor on the service's pools; `tell` gets which cluster it is.

    Raises ClusterError, and FingerprintError for another model.
    """
    from actors.service.executor import attach

    assert cluster is not None, "a job on a service has the service's pools"
    offered = describe(choice.offered.open()) if choice.offered is not None else None
    return attach(choice.address, choice.name, timeouts=cluster.timeouts, offered=offered, tell=tell)
