"""Starting what runs the stages: this process, or workers on Ray."""

from collections.abc import Callable

import torch

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.runtime.executor import AbstractExecutor, InlineExecutor
from longmem.store.config import StoreSettings
from pipelines.command.command_line import num_cores

THREADS_FOR_EACH_CORE = 16
"""Most threads of one process for each core that it may use: a thousand on two cores take ten times as long as two."""


def use_threads(threads: int) -> None:
    """Let torch compute with so many threads in this process. Raises ConfigError for an absurd number."""
    if threads > (most := THREADS_FOR_EACH_CORE * num_cores()):
        raise ConfigError(f"--threads must be at most {most:,} on {num_cores()} cores, got {threads:,}")
    torch.set_num_threads(threads)


def start_executor(
    model: ModelSource,
    store: StoreSettings,
    cluster: ClusterShape | None,
    threads: int,
    tell: Callable[[str], None] = lambda _text: None,
) -> AbstractExecutor:
    """Workers on Ray, which is imported only for that; without a cluster, this process with so many torch threads.
    `tell` gets what the user should know meanwhile."""
    if cluster is None:
        use_threads(threads)
        return InlineExecutor(model.open(), store.open())
    from actors.executor.ray_executor import RayExecutor

    return RayExecutor(model, store, cluster, tell)
