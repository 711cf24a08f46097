# SPDX-License-Identifier: Apache-2.0
"""Jobs on a service, which provides model, store and worker pools."""

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
"""Default limit of a job's segments in flight per worker."""


@dataclass(frozen=True, kw_only=True)
class ServiceChoice:
    """Service that a job runs on. Raises ConfigError for an address without a running cluster."""

    name: str
    address: str = "auto"
    offered: ModelSource | None = None
    """Model that the service must hold; None accepts any."""
    limits_given: bool = False
    """False if the job's limit of segments is a default, which then follows the size of the service."""

    def __post_init__(self) -> None:
        if self.address in ("none", "local"):
            raise ConfigError(f"--service needs a cluster that runs already, not --address {self.address}")


@dataclass(frozen=True, kw_only=True)
class ServiceParts:
    """Parts that a service provides for all its jobs."""

    model: ModelSource
    store: StoreSettings
    cluster: ClusterShape

    @property
    def in_flight_segments(self) -> int:
        """Default limit of one job's encoded segments in flight."""
        return SEGMENTS_PER_WORKER * (self.cluster.encoders + self.cluster.readers)


def find_parts(choice: ServiceChoice, timeouts: "Timeouts | None" = None) -> ServiceParts:
    """Look up a service on its cluster; `timeouts` are those of the job. Raises ClusterError if there is none."""
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
    """Return an executor on the service's pools; `tell` receives the cluster's address.

    Raises ClusterError, and FingerprintError for another model.
    """
    from actors.service.executor import attach

    assert cluster is not None, "a job on a service has the service's pools"
    offered = describe(choice.offered.open()) if choice.offered is not None else None
    return attach(choice.address, choice.name, timeouts=cluster.timeouts, offered=offered, tell=tell)
