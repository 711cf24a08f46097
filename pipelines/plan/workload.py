"""What a plan is made for: documents of so many tokens, on so many nodes and workers."""

from dataclasses import dataclass

import numpy as np

from longmem.errors import ConfigError
from pipelines.command.choices import Retention
from pipelines.plan.costs import UnitCosts


@dataclass(frozen=True)
class Workload:
    """Documents by their number of tokens, and what the store keeps of them. Raises ConfigError."""

    document_tokens: tuple[int, ...]
    retention: Retention = "document"

    def __post_init__(self) -> None:
        if not self.document_tokens or min(self.document_tokens) < 1:
            raise ConfigError("a plan needs documents of at least one token each")

    @property
    def num_tokens(self) -> int:
        return sum(self.document_tokens)


@dataclass(frozen=True)
class Cluster:
    """Where the job would run. Raises ConfigError."""

    nodes: int = 1
    cores_per_node: float = 1
    encoders: int = 1
    readers: int = 1
    stores: int = 1
    threads: int = 1
    """Torch threads of each worker, for which the costs were measured."""
    in_process: bool = False
    """`--address none`: no pools, one thing after the other."""
    window_cap_bytes: int = 2**30
    """Windows that a reader keeps."""

    def __post_init__(self) -> None:
        for name in ("nodes", "encoders", "readers", "stores", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.cores_per_node <= 0:
            raise ConfigError(f"--cores-per-node must be positive, got {self.cores_per_node:g}")
        if self.in_process and self.nodes > 1:
            raise ConfigError(f"--address none runs in one process: it cannot use {self.nodes} nodes")


@dataclass(frozen=True)
class Segments:
    """Kinds of segments: all with as many tokens in the window and of the same length count once."""

    window_tokens: np.ndarray
    share: np.ndarray
    """Their length over that of a full segment."""
    count: np.ndarray

    @property
    def total(self) -> int:
        return int(self.count.sum())

    @property
    def full(self) -> float:
        """As many full segments have as many tokens."""
        return float((self.count * self.share).sum())


def kinds_of_segments(costs: UnitCosts, workload: Workload) -> Segments:
    size, memory = costs.segment_tokens, costs.memory_tokens
    full = np.array([tokens // size for tokens in workload.document_tokens])
    rest = np.array([tokens % size for tokens in workload.document_tokens])
    level = -(-memory // size)
    """From this index on the window is full."""
    levels = np.arange(level + 1)
    # documents that have more full segments than so: as many segments with that index
    count = np.array([(full > index).sum() for index in levels])
    count[level] = np.maximum(full - level, 0).sum()
    ends = rest > 0
    window = np.concatenate([levels, np.minimum(full[ends], level)]) * size
    share = np.concatenate([np.ones(len(levels)), rest[ends] / size])
    counts = np.concatenate([count, np.ones(int(ends.sum()), dtype=count.dtype)])
    kept = counts > 0
    return Segments(np.minimum(window, memory)[kept], share[kept], counts[kept])
