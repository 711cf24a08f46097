# SPDX-License-Identifier: Apache-2.0
"""Input of a plan: lengths of documents, nodes and workers."""

from dataclasses import dataclass

import numpy as np

from longmem.errors import ConfigError
from pipelines.command.choices import Retention
from pipelines.plan.costs import UnitCosts


@dataclass(frozen=True)
class Workload:
    """Lengths of documents in tokens, and the retention of their blocks. Raises ConfigError."""

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
    """Nodes and workers of a planned job. Raises ConfigError."""

    nodes: int = 1
    cores_per_node: float = 1
    encoders: int = 1
    readers: int = 1
    stores: int = 1
    threads: int = 1
    """Torch threads of each worker; must equal those of the measured costs."""
    in_process: bool = False
    """True for `--address none`: one process without pools."""
    workers: int = 1
    """Workers in that process. One runs the stages in sequence."""
    window_cap_bytes: int = 2**30
    """Maximum bytes of windows that a reader keeps."""

    def __post_init__(self) -> None:
        for name in ("nodes", "encoders", "readers", "stores", "workers", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.cores_per_node <= 0:
            raise ConfigError(f"--cores-per-node must be positive, got {self.cores_per_node:g}")
        if self.in_process and self.nodes > 1:
            raise ConfigError(f"--address none runs in one process: it cannot use {self.nodes} nodes")


@dataclass(frozen=True)
class Segments:
    """Kinds of segments: segments with equal length and equal tokens in the window form one kind."""

    window_tokens: np.ndarray
    share: np.ndarray
    """Length relative to a full segment."""
    count: np.ndarray

    @property
    def total(self) -> int:
        return int(self.count.sum())

    @property
    def full(self) -> float:
        """Number of full segments with the same total of tokens."""
        return float((self.count * self.share).sum())


def kinds_of_segments(costs: UnitCosts, workload: Workload) -> Segments:
    size, memory = costs.segment_tokens, costs.memory_tokens
    full = np.array([tokens // size for tokens in workload.document_tokens])
    rest = np.array([tokens % size for tokens in workload.document_tokens])
    level = -(-memory // size)
    """Index of the first segment with a full window."""
    levels = np.arange(level + 1)
    # number of segments with an index: documents that have more full segments than it
    count = np.array([(full > index).sum() for index in levels])
    count[level] = np.maximum(full - level, 0).sum()
    ends = rest > 0
    window = np.concatenate([levels, np.minimum(full[ends], level)]) * size
    share = np.concatenate([np.ones(len(levels)), rest[ends] / size])
    counts = np.concatenate([count, np.ones(int(ends.sum()), dtype=count.dtype)])
    kept = counts > 0
    return Segments(np.minimum(window, memory)[kept], share[kept], counts[kept])
