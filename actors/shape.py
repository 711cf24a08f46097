"""The size of a cluster job. Free of Ray, so that a command line can be checked without loading it."""

from dataclasses import dataclass

from longmem.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """How many actors of each kind, and what each declares to Ray's scheduler. Raises ConfigError."""

    address: str = "auto"
    encoders: int = 1
    readers: int = 1
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

    def __post_init__(self) -> None:
        for name in ("encoders", "readers", "stores", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_cpus(self) -> int:
        return (self.encoders + self.readers) * self.threads

    @property
    def num_gpus(self) -> float:
        return self.encoders * self.encoder_gpus + self.readers * self.reader_gpus
