# SPDX-License-Identifier: Apache-2.0
"""Size of a cluster job. Does not import Ray, so that a command line is checked without loading it."""

from dataclasses import dataclass, field
from typing import Literal

from actors.executor.timeouts import Timeouts
from longmem.errors import ConfigError

AUTO = "auto"
"""Address that joins a running cluster on this machine, and otherwise starts one."""
LOCAL = "local"
"""Address that starts a cluster for one command."""

IN_FLIGHT_BYTES = 2**30
"""Default limit of the bytes of encoded segments in flight of a job or client."""

STORES_RECENT_BYTES = 2**28
"""Largest capacity for the newest blocks of all store actors of a job, in bytes: about what a job has in flight by
default, because readers may be that far behind. Each reader reads other blocks from the disk."""

Placement = Literal["pack", "spread"]
"""Spread of workers over nodes: fill one node after the other, or use as many nodes as there are."""


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """Number of actors of each kind, and the resources that each declares to Ray. Raises ConfigError."""

    address: str = AUTO
    encoders: int = 1
    readers: int = 1
    """Number of readers; 0 if no segment is scored: encoders then store segments and answer requests."""
    stores: int = 1
    threads: int = 1
    """Torch threads, and CPUs, of each encoder and reader."""
    encoder_gpus: float = 0.0
    reader_gpus: float = 0.0
    """GPU share of each reader. Above 0, the model runs on the GPU; `encoder_gpus` likewise."""
    window_bytes: int = 2**30
    """Bytes of memory windows that each reader caches."""
    object_store_bytes: int = 2**30
    """Bytes of Ray's object store in a cluster that is started here."""

    placement: Placement = "pack"
    """Scheduling of workers: fill one node after the other, or spread over all nodes."""
    cpu_share: float = 1.0
    """CPUs that a worker reserves per thread. Below 1, several jobs fit on the same cores, which the operating system
    shares among them."""
    elastic: bool = False
    """True to begin with the workers that fit; the others start when nodes join."""
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        if not 0 < self.cpu_share <= 1:
            raise ConfigError(f"cpu_share must be above 0 and at most 1, got {self.cpu_share:g}")
        if self.placement not in ("pack", "spread"):
            raise ConfigError(f"placement must be pack or spread, got {self.placement!r}")
        for name, least in (("encoders", 1), ("readers", 0), ("stores", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def num_workers(self) -> int:
        """Number of workers that reserve resources; stores do not."""
        return self.encoders + self.readers

    @property
    def num_cpus(self) -> float:
        """CPUs reserved by all workers."""
        return (self.encoders + self.readers) * self.threads * self.cpu_share

    @property
    def min_cpus(self) -> float:
        """CPUs that the job needs to begin."""
        return (1 + bool(self.readers)) * self.threads * self.cpu_share if self.elastic else self.num_cpus

    @property
    def num_gpus(self) -> float:
        return self.encoders * self.encoder_gpus + self.readers * self.reader_gpus

    @property
    def min_gpus(self) -> float:
        return self.encoder_gpus + bool(self.readers) * self.reader_gpus if self.elastic else self.num_gpus
