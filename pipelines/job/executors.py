"""Starting what runs the stages: this process, or workers on Ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.runtime.executor import PUT_SEGMENTS, AbstractExecutor, InlineExecutor
from longmem.store.config import IN_MEMORY, StoreSettings
from pipelines.command.command_line import num_cores
from pipelines.job.service import ServiceChoice, attach_to

MEMORY_FOLDER = "memory.lance"
"""Store of a job that names none, inside its output folder."""
THREADS_FOR_EACH_CORE = 16
"""Most threads of one process for each core that it may use: a thousand on two cores take ten times as long as two."""

IN_FLIGHT_PER_WORKER = 8
IN_FLIGHT_IN_PROCESS = 2 * PUT_SEGMENTS
"""Encoded segments that may wait by default: some are written while others are read."""


def default_in_flight(num_workers: int | None) -> int:
    """Encoded segments that may wait, for so many workers on a cluster; None for everything in this process."""
    return IN_FLIGHT_IN_PROCESS if num_workers is None else IN_FLIGHT_PER_WORKER * num_workers


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


def open_workers(
    model: ModelSource,
    store: StoreSettings,
    cluster: ClusterShape | None,
    service: ServiceChoice | None,
    threads: int,
    tell: Callable[[str], None],
) -> AbstractExecutor:
    """Return the workers of a service, workers of the job's own on Ray, or this process."""
    if service is not None:
        return attach_to(service, cluster, tell)
    return start_executor(model, store, cluster, threads, tell)


def unused_store(out: Path, cluster: ClusterShape | None) -> StoreSettings:
    """Return a store for a job that keeps nothing: in memory, or a folder where workers are other processes."""
    return StoreSettings(IN_MEMORY if cluster is None else str(out.absolute() / MEMORY_FOLDER))


def where(cluster: ClusterShape | None, threads: int | None) -> dict[str, Any]:
    """Return what a summary says of where a job of requests ran."""
    if cluster is None:
        return {"address": "none", "threads": threads}
    return {"address": cluster.address, "workers": cluster.encoders, "threads": threads}
