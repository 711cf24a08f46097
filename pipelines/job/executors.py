# SPDX-License-Identifier: Apache-2.0
"""Start of executors: this process, workers on Ray, or a service."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from actors.config import IN_FLIGHT_BYTES, ClusterShape
from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from longmem.runtime.executor import PUT_SEGMENTS, AbstractExecutor
from longmem.runtime.scheduler import Limits
from longmem.store.config import StoreSettings
from longmem.system.heap import keep_freed_memory
from pipelines.command.command_line import num_cores
from pipelines.job.service import ServiceChoice, attach_to

MEMORY_FOLDER = "memory.lance"
"""Default store of a job, inside its output folder."""
THREADS_FOR_EACH_CORE = 16
"""Maximum threads per usable core: on two cores, a thousand threads take ten times as long as two."""

IN_FLIGHT_PER_WORKER = 8
IN_FLIGHT_IN_PROCESS = 2 * PUT_SEGMENTS
"""Least default limit of encoded segments in flight in one process: some are written while others are read."""
LEAST_PER_WORKER, LEAST_IN_PROCESS = 2, 4
"""Default limits where segments are large: a worker has two tasks, one of which it runs."""


def default_in_flight(on_ray: int | None, in_process: int = 1) -> int:
    """Return the default limit of encoded segments in flight.

    Args:
        on_ray: Number of workers on Ray; None for a job in this process.
        in_process: Number of workers in this process.
    """
    return (
        max(IN_FLIGHT_IN_PROCESS, IN_FLIGHT_PER_WORKER * in_process)
        if on_ray is None
        else IN_FLIGHT_PER_WORKER * on_ray
    )


def default_limits(on_ray: int | None, in_process: int = 1) -> Limits:
    """Return the default limits of encoded segments in flight; large segments have a lower one (`least_in_flight`)."""
    return Limits(default_in_flight(on_ray, in_process), IN_FLIGHT_BYTES)


def least_in_flight(on_ray: int | None, in_process: int = 1) -> int:
    """Return the number of encoded segments in flight that keep all workers busy, however large they are."""
    return max(LEAST_IN_PROCESS, LEAST_PER_WORKER * in_process) if on_ray is None else LEAST_PER_WORKER * on_ray


def use_threads(threads: int) -> None:
    """Set torch's number of threads in this process. Raises ConfigError above `THREADS_FOR_EACH_CORE` per core."""
    if threads > (most := THREADS_FOR_EACH_CORE * num_cores()):
        raise ConfigError(f"--threads must be at most {most:,} on {num_cores()} cores, got {threads:,}")
    import torch

    torch.set_num_threads(threads)


def import_executor(address: str) -> None:
    """Import what opens the workers of an address; in this process, that is torch and takes seconds."""
    import_module("longmem.runtime.inline_executor" if address == "none" else "actors.executor.ray_executor")


def start_executor(
    model: ModelSource,
    store: StoreSettings,
    cluster: ClusterShape | None,
    threads: int,
    tell: Callable[[str], None] = lambda _text: None,
    workers: int = 1,
) -> AbstractExecutor:
    """Return an executor with workers on Ray, or, without a cluster, with `workers` in this process.

    Each of those has `threads` torch threads. Ray is imported only for a cluster. `tell` receives messages for the
    user.
    """
    if cluster is None:
        from longmem.runtime.inline_executor import InlineExecutor

        use_threads(threads)
        keep_freed_memory()
        return InlineExecutor(model.open(), store.open(), workers=workers)
    from actors.executor.ray_executor import RayExecutor

    return RayExecutor(model, store, cluster, tell)


def open_workers(
    model: ModelSource,
    store: StoreSettings,
    cluster: ClusterShape | None,
    service: ServiceChoice | None,
    threads: int,
    tell: Callable[[str], None],
    workers: int = 1,
) -> AbstractExecutor:
    """Return an executor on a service, on the job's own Ray workers, or with `workers` in this process."""
    if service is not None:
        return attach_to(service, cluster, tell)
    return start_executor(model, store, cluster, threads, tell, workers)


def where(cluster: ClusterShape | None, workers: int, threads: int | None) -> dict[str, Any]:
    """Return the summary's description of the executor of a job of requests; `workers` are those in this process."""
    if cluster is None:
        return {"address": "none", "workers": workers, "threads": threads}
    return {"address": cluster.address, "workers": cluster.encoders, "threads": threads}
