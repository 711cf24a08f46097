"""The size of a cluster job. Free of Ray, so that a command line can be checked without loading it."""

from dataclasses import dataclass, field
from typing import Literal

from actors.executor.timeouts import Timeouts
from longmem.errors import ConfigError

AUTO = "auto"
"""Address that joins a cluster which runs on this machine, and else starts one."""
LOCAL = "local"
"""Address that starts a cluster for one command."""

Placement = Literal["pack", "spread"]
"""Spread of workers over nodes: fill one node after the other, or use as many nodes as there are."""


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """How many actors of each kind, and what each declares to Ray's scheduler. Raises ConfigError."""

    address: str = AUTO
    encoders: int = 1
    readers: int = 1
    """0 where no segment is scored: encoders store segments and answer requests."""
    stores: int = 1
    threads: int = 1
    """Torch threads, and CPUs, of each encoder and reader."""
    encoder_gpus: float = 0.0
    reader_gpus: float = 0.0
    """GPU share of each actor; with more than 0 its model runs on the GPU."""
    window_bytes: int = 2**30
    """Windows that each reader keeps in memory."""
    object_store_bytes: int = 2**30
    """Size of Ray's object store where the cluster is started here."""

    placement: Placement = "pack"
    """Whether Ray fills one node after the other, or puts workers on as many nodes as there are."""
    cpu_share: float = 1.0
    """CPUs that a worker reserves, as a share of its threads: below 1, several jobs fit on the same cores, and the
    system shares the cores among them."""
    elastic: bool = False
    """Begin with the workers that there is room for; the others begin when nodes join."""
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
        """Workers that reserve something: stores do not."""
        return self.encoders + self.readers

    @property
    def num_cpus(self) -> float:
        """CPUs that all workers reserve."""
        return (self.encoders + self.readers) * self.threads * self.cpu_share

    @property
    def min_cpus(self) -> float:
        """CPUs without which the job cannot begin."""
        return (1 + bool(self.readers)) * self.threads * self.cpu_share if self.elastic else self.num_cpus

    @property
    def num_gpus(self) -> float:
        return self.encoders * self.encoder_gpus + self.readers * self.reader_gpus

    @property
    def min_gpus(self) -> float:
        return self.encoder_gpus + bool(self.readers) * self.reader_gpus if self.elastic else self.num_gpus
