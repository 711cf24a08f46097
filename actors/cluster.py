# SPDX-License-Identifier: Apache-2.0
"""Joins or starts a Ray cluster; holds the only calls of `ray.init` in the project."""

import logging
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, Timer, current_thread, main_thread
from typing import Any

import ray
from ray._common.utils import get_system_memory
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET, REQUIRE_SHM_SIZE_THRESHOLD
from ray._private.utils import get_shared_memory_bytes
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from actors.admission import OR_ELSE, Head, check_admitted, reset_token_mode, resolve
from actors.cluster_watch import GCS, RAYLET, ClusterWatch
from actors.config import AUTO, LOCAL
from longmem.errors import ClusterError, ConfigError

DAEMONS = {PROCESS_TYPE_GCS_SERVER: GCS, PROCESS_TYPE_RAYLET: RAYLET}
PRIVATE = b"longmem:private"
"""Key set in a cluster that a command started for itself, and that ends with it. The value names the process."""
VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
"""Versions in Ray's message about a mismatch: those of the cluster first, then those of this process."""
CLIENT_ATTEMPTS = 3
"""Attempts to join through `ray://` while the cluster's process for this client dies at its start."""
CLIENT_DIED_STARTING = (
    "Starting Ray client server failed",
    "Proxy failed to Connect to backend",
    "ZombieProcess",
    "NoSuchProcess",
)
"""Substrings of Ray's message in that case; the moment of the death decides which one it contains."""
ARENAS = "MALLOC_ARENA_MAX"
"""Environment variable of glibc: number of heaps of a process. It is read at the start of a process."""
SLOW_S = 5.0
"""Seconds after which the operator is told what is waited for."""
START_MINUTES = 2
"""Limit of Ray 2.60 for the start of a cluster: 30 s each for the port of the head process, for answers from it, for
the ports of the node process, and for its registration."""
JOIN_S = 50
"""Limit of Ray 2.60 for joining: 20 s until the head process answers, 30 s until a node is found."""
_JOINING = Lock()
"""Held while joining: Ray has one connection per process, and clients may join from several threads."""


def say_nothing(_text: str) -> None:
    """Discard a message for the operator."""


@dataclass(frozen=True)
class Connection:
    """An initialised Ray connection, and whether this process must shut it down."""

    owned: bool
    started_here: bool
    """True for a cluster that serves only this process and ends with it."""
    address: str
    """Address at which it was joined or started."""
    dashboard_url: str | None
    watch: ClusterWatch = field(repr=False)
    """Watch that detects the loss of the cluster."""

    def advice(self, fewer: str) -> str:
        """Return advice for a job that lacks resources; `fewer` names the options that reduce its needs."""
        own = "" if self.started_here else ", or --address local, which starts a cluster for this command alone"
        return f"use fewer {fewer}{own}"

    def close(self) -> None:
        if self.owned and ray.is_initialized():
            ray.shutdown()
        self.watch.close()


def connect(
    address: str, num_cpus: int, object_store_bytes: int | None, tell: Callable[[str], None] = say_nothing
) -> Connection:
    """Join the cluster at `address`, or start one here; `tell` is called first, with a description of the cluster.

    `local` always starts one, `auto` joins a running one and otherwise starts one, and anything else is an address to
    join (`host:port`, `ray://host:port`). `auto` does not join a cluster that another command started for itself,
    because it ends with that command. `num_cpus` and `object_store_bytes` (None: Ray's default) size a cluster that is
    started here. It may have more CPU slots than the machine has cores, because workers declare threads and the
    operating system shares the cores.

    Raises ClusterError when the address cannot be reached or refuses this process, and ConfigError for an object store
    that is larger than the memory of this machine.
    """
    if ray.is_initialized() or address not in (AUTO, LOCAL):
        return join(address, tell)
    before = ""
    if address == AUTO:
        try:
            return join(AUTO, tell)
        except NoClusterError as error:
            before = error.before
    waits = (
        "starting a Ray cluster on this machine; its processes are slow to start on a busy one, and Ray gives up after "
        f"about {START_MINUTES} minutes (--address none needs no cluster)"
    )
    with _told_if_slow(tell, waits):
        connection = _start(num_cpus, object_store_bytes)
    tell(f"{before}started a Ray cluster on this machine, at {connection.address}")
    return connection


class NoClusterError(ClusterError):
    """No cluster to join was found for `auto`; one can be started instead."""

    def __init__(self, before: str = "") -> None:
        """`before` says what was found instead; it begins the message."""
        super().__init__(
            f"{before}no Ray cluster to join runs on this machine; start one with `ray start --head`, or name one with "
            "--address"
        )
        self.before = before


def join(address: str, tell: Callable[[str], None] = say_nothing) -> Connection:
    """Join a running cluster and never start one; `auto` is one that runs on this machine.

    Raises ClusterError when there is none.
    """
    with _JOINING:
        return _join(address, tell)


def _join(address: str, tell: Callable[[str], None]) -> Connection:
    if ray.is_initialized():
        connection = _connection(None, owned=False)
        tell(f"uses the Ray cluster at {connection.address}, which this process had joined before; {free_cpus()}")
        return connection
    _prepare()
    head = _head(address)
    waits = f"joining the Ray cluster at {head}; Ray gives up after about {JOIN_S} s"
    with _told_if_slow(tell, waits):
        _init(head, tell)
    if head.source == "found" and (whose := _internal_kv_get(PRIVATE)):
        ray.shutdown()
        raise NoClusterError(f"the Ray cluster at {head.address} ends with the command of {whose.decode()}: ")
    connection = _connection(head, owned=True)
    tell(f"joined the Ray cluster at {head}; {free_cpus()}")
    return connection


def _init(head: Head, tell: Callable[[str], None]) -> None:
    """Connect Ray to a head. Raises ClusterError.

    A cluster starts one process per client of `ray://`, and a new one for every attempt. A process that dies at its
    start is therefore retried.
    """
    for attempt in range(1, CLIENT_ATTEMPTS + 1):
        try:
            with _sigterm_stays_ours():
                ray.init(address=head.address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:
            # it may be half initialised
            ray.shutdown()
            is_transient = head.is_client and any(part in str(error) for part in CLIENT_DIED_STARTING)
            if not is_transient or attempt == CLIENT_ATTEMPTS:
                raise ClusterError(f"cannot join the Ray cluster at {head}: {in_one_line(error)}; {OR_ELSE}") from error
        tell(f"the Ray cluster at {head} lost its process for this client; attempt {attempt + 1} of {CLIENT_ATTEMPTS}")


def _head(address: str) -> Head:
    """Return the head that an address names, after checking that it admits this process. Raises ClusterError."""
    head = resolve(address)
    if head is None:
        raise NoClusterError
    try:
        check_admitted(head)
    except ClusterError as error:
        if head.source == "recorded":
            raise NoClusterError(f"the Ray cluster that is on record here, at {head.address}, has ended: ") from error
        raise
    return head


def _start(num_cpus: int, object_store_bytes: int | None) -> Connection:
    check_object_store(object_store_bytes)
    _prepare()
    reset_token_mode()
    try:
        with _sigterm_stays_ours(), _one_heap_for_each(), warnings.catch_warnings():
            # LanceDB, where it is loaded, warns in each child before that becomes one of Ray's processes. The filter is
            # of the whole process: another thread that changes filters meanwhile may lose its own
            warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
            ray.init(
                address=LOCAL,
                num_cpus=max(num_cpus, os.cpu_count() or 1),
                object_store_memory=object_store_bytes,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except Exception as error:
        ray.shutdown()
        raise ClusterError(
            f"cannot start Ray on this machine: {in_one_line(error)}; try again (a busy machine may be too slow for "
            "Ray), or use --address none"
        ) from error
    _internal_kv_put(PRIVATE, f"process {os.getpid()}".encode())
    return _connection(None, owned=True)


def check_object_store(num_bytes: int | None) -> None:
    """Raise ConfigError for an object store that does not fit on this machine, before Ray's processes start.

    Ray itself checks after its head process runs, and its ValueError reads like that of a slow machine.
    """
    if num_bytes is None:
        return
    memory = get_system_memory()
    if num_bytes > memory:
        raise ConfigError(
            f"an object store of {num_bytes:,} bytes does not fit: this machine has {memory:,} bytes of memory; give "
            "--object-store-bytes less (a third of the memory leaves room for models), or use --address none"
        )
    shared = get_shared_memory_bytes()
    slow_allowed = os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
    if num_bytes > shared and num_bytes > REQUIRE_SHM_SIZE_THRESHOLD and not slow_allowed:
        raise ConfigError(
            f"an object store of {num_bytes:,} bytes does not fit: /dev/shm has {shared:,} bytes free; give "
            "--object-store-bytes less, make /dev/shm larger (docker run --shm-size), or use --address none"
        )


def _connection(head: Head | None, owned: bool) -> Connection:
    """Describe the cluster that this process is connected to."""
    node = ray._private.worker._global_node
    started_here = head is None and owned
    address = str(ray.get_runtime_context().gcs_address) if head is None or not head.is_client else head.address
    whose = "that this command started" if started_here else f"at {address}"
    if node is None:
        # Ray's client reaches only the server that it joins through
        targets = {"client server": head.target if head is not None else address}
    else:
        targets = {GCS: node.gcs_address, RAYLET: f"{node.node_ip_address}:{node.node_manager_port}"}
    return Connection(
        owned, started_here, address, _dashboard_url(), ClusterWatch(f"the Ray cluster {whose}", targets, _ended(node))
    )


def _ended(node: Any) -> Callable[[], list[str]]:
    """Return a function that names the ended daemons among the children of this process."""

    def ended() -> list[str]:
        if node is None or not node.is_head():
            return []
        return [
            f"{DAEMONS[kind]} has ended (exit status {process.returncode})"
            for kind, process in node.dead_processes()
            if kind in DAEMONS
        ]

    return ended


def free_cpus() -> str:
    """Return the free and total CPUs of the cluster as a sentence."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} CPUs are free"


def in_one_line(error: Exception) -> str:
    """Return Ray's message on one line; for a version mismatch, return both versions and advice."""
    versions = VERSIONS.findall(str(error))
    if len(versions) == 2:
        (theirs, their_python), (ours, our_python) = versions
        return (
            f"it runs Ray {theirs} on Python {their_python}, this process Ray {ours} on Python {our_python}; "
            "install the same versions on both sides"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


def _prepare() -> None:
    """Turn off usage statistics, and changes of CUDA_VISIBLE_DEVICES for CPU workers, before Ray starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextmanager
def _told_if_slow(tell: Callable[[str], None], text: str) -> Iterator[None]:
    """Tell the operator what is waited for, once the block takes longer than SLOW_S."""
    timer = Timer(SLOW_S, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _one_heap_for_each() -> Iterator[None]:
    """Give each process that is started in the block one heap of glibc, unless the user has chosen a number.

    Ray runs tasks in threads, and heaps of threads return memory with every large tensor, whatever `keep_freed_memory`
    sets. Each returned page costs a fault: measured in encoders, 40% of their time in the kernel.
    """
    if ARENAS in os.environ:
        yield
        return
    os.environ[ARENAS] = "1"
    try:
        yield
    finally:
        del os.environ[ARENAS]


@contextmanager
def _sigterm_stays_ours() -> Iterator[None]:
    """Restore this process's SIGTERM handler after the block.

    Ray installs its own, in Python and in C, and the latter aborts the process. Python lets only the main thread set
    handlers, so a join from another thread keeps Ray's.
    """
    if current_thread() is not main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None: the handler was installed from C and cannot be restored here
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def find_cluster() -> str | None:
    """Return the address of the cluster on this machine, or None. Raises ClusterError if it does not answer or refuses
    this process."""
    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    try:
        return _head(AUTO).address
    except NoClusterError:
        return None


def check_capacity(num_cpus: float, num_gpus: float, advice: str) -> None:
    """Raise ClusterError if the total resources of the cluster are too small, because waiting cannot help then.

    `advice` says what the user can do.
    """
    total = ray.cluster_resources()
    for name, needed in (("CPU", num_cpus), ("GPU", num_gpus)):
        if needed > total.get(name, 0):
            raise ClusterError(f"the job needs {needed:g} {name}, the cluster has {total.get(name, 0):g}; {advice}")


def describe_lack(num_cpus: float, num_gpus: float) -> str | None:
    """Return which resource is lacking now as a sentence, or None if there is enough."""
    free = ray.available_resources()
    for name, needed in (("CPU", num_cpus), ("GPU", num_gpus)):
        if needed > free.get(name, 0):
            return f"it waits for {needed:g} {name}, the cluster has {free.get(name, 0):g} free"
    return None


def _dashboard_url() -> str | None:
    url = ray.get_runtime_context().gcs_address and getattr(ray._private.worker.global_worker.node, "webui_url", None)
    return f"http://{url}" if url else None
