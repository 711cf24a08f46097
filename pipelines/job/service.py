"""A job on a service: its model, its store and its pools are those of the service."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from longmem.errors import ConfigError
from longmem.model.source import ModelSource, describe
from longmem.runtime.executor import AbstractExecutor

if TYPE_CHECKING:
    from pipelines.perplexity.job import PerplexityJob

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


def on_service(job: "PerplexityJob", choice: ServiceChoice) -> "PerplexityJob":
    """The same job with what the service has. Raises ClusterError when there is no such service."""
    from actors.cluster import join
    from actors.service.registry import find_service

    connection = join(choice.address)
    try:
        service = find_service(choice.name)
    finally:
        connection.close()
    timeouts = job.cluster.timeouts if job.cluster else service.shape.timeouts
    shape, limits = replace(service.shape, address=choice.address, timeouts=timeouts), job.limits
    if not choice.limits_given:
        limits = replace(limits, max_in_flight_segments=SEGMENTS_PER_WORKER * (shape.encoders + shape.readers))
    return replace(
        job,
        model=service.source,
        store=service.store.uri,
        durability=service.store.durability,
        store_quota_bytes=service.store.max_bytes,
        cluster=shape,
        threads=shape.threads,
        threads_given=True,
        limits=limits,
    )


def attach_to(choice: ServiceChoice, job: "PerplexityJob", tell: Callable[[str], None]) -> AbstractExecutor:
    """An executor on the service's pools; `tell` gets which cluster it is.

    Raises ClusterError, and FingerprintError for another model."""
    from actors.service.executor import attach

    assert job.cluster is not None, "a job on a service has the service's pools"
    offered = describe(choice.offered.open()) if choice.offered is not None else None
    return attach(choice.address, choice.name, timeouts=job.cluster.timeouts, offered=offered, tell=tell)
