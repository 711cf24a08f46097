"""Joining or starting a Ray cluster: the only `ray.init` of the project."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, current_thread, main_thread

import grpc
import ray
from ray._private.services import get_ray_address_from_environment

from longmem.errors import ClusterError

LOCAL = "local"
AUTO = "auto"
CONNECT_S = 5.0
_JOINING = Lock()
"""Ray's connection belongs to the process: two clients in two threads must not make it twice."""


@dataclass(frozen=True)
class Connection:
    """An initialised Ray, and whether it is ours to shut down."""

    owned: bool
    started_here: bool
    """A cluster of this process alone, which ends with it."""
    dashboard_url: str | None

    def close(self) -> None:
        if self.owned:
            ray.shutdown()


def connect(address: str, num_cpus: int, object_store_bytes: int | None) -> Connection:
    """Join the cluster at `address`, or start one here.

    `local` always starts one, `auto` joins a running one and else starts one, anything else is an address to join
    (`host:port`, `ray://host:port`). `num_cpus` and `object_store_bytes` (None: Ray's own choice) size a cluster that
    is started here: it may have more CPU slots than the machine has cores, because workers declare threads and the
    system shares them.
    Raises ClusterError when the address cannot be reached.
    """
    if ray.is_initialized() or address not in (AUTO, LOCAL):
        return join(address)
    if address == AUTO:
        with suppress(ClusterError):
            return join(AUTO)
    _prepare()
    try:
        with _sigterm_stays_ours():
            ray.init(
                address=LOCAL,
                num_cpus=max(num_cpus, os.cpu_count() or 1),
                object_store_memory=object_store_bytes,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ValueError, RuntimeError, OSError) as error:
        raise ClusterError(f"cannot start Ray on this machine: {error}; try --address none") from error
    return Connection(owned=True, started_here=True, dashboard_url=_dashboard_url())


def join(address: str) -> Connection:
    """Join a cluster that runs, and never start one; `auto` is one that runs on this machine.

    Raises ClusterError when there is none.
    """
    with _JOINING:
        return _join(address)


def _join(address: str) -> Connection:
    if ray.is_initialized():
        return Connection(owned=False, started_here=False, dashboard_url=_dashboard_url())
    _prepare()
    _check_reachable(address)
    try:
        with _sigterm_stays_ours():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == AUTO:
            raise ClusterError(
                "no Ray cluster runs on this machine; start one with `ray start --head`, or name one with --address"
            ) from error
        raise ClusterError(
            f"cannot join a Ray cluster at {address!r}: {error}; check the address with `ray status`, "
            "or use --address local to start one here, or --address none to run without Ray"
        ) from error
    return Connection(owned=True, started_here=False, dashboard_url=_dashboard_url())


def _prepare() -> None:
    """Before the first daemon starts: no usage pings, and no change of CUDA_VISIBLE_DEVICES for CPU workers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextmanager
def _sigterm_stays_ours() -> Iterator[None]:
    """Ray takes SIGTERM over, in Python and once more beneath it, where its handler aborts this process. Python lets
    only the main thread set handlers: who joins in another keeps Ray's."""
    if current_thread() is not main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None: set by somebody who does not speak Python
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and cannot be interrupted meanwhile."""
    if address == AUTO:
        # who finds no cluster raises at once; one that was found may be stopped, or out of reach
        with suppress(ConnectionError):
            address = str(get_ray_address_from_environment(AUTO, None))
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if address in (AUTO, LOCAL) or not separator:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        _check_answers(f"{host}:{port}")
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"nothing answers at {address!r} ({error}); check the address with `ray status`, or use --address local to "
            "start a cluster here, or --address none to run without Ray"
        ) from error


def _check_answers(target: str) -> None:
    """A head that is stopped still accepts connections, for the system does. Raises TimeoutError when it says nothing.

    Any answer will do, a refusal too: whether it is a healthy Ray that one may join is for Ray to find out.
    """
    # past any proxy, as Ray's own connections
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=CONNECT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"it accepts connections and says nothing for {CONNECT_S:g} s") from error


def find_cluster() -> str | None:
    """Address of the cluster that `auto` would join, or None when none runs. Raises ClusterError for one that does not
    answer."""
    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    _check_reachable(AUTO)
    try:
        ray.init(address=AUTO, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        return None
    try:
        return str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def check_capacity(num_cpus: float, num_gpus: float) -> None:
    """Raises ClusterError when the whole cluster is too small, instead of waiting for ever for a place."""
    total = ray.cluster_resources()
    for name, needed, flags in (("CPU", num_cpus, "--encoders, --readers or --threads"), ("GPU", num_gpus, "GPUs")):
        if needed > total.get(name, 0):
            raise ClusterError(
                f"the job needs {needed:g} {name}, the cluster has {total.get(name, 0):g}; use fewer {flags}"
            )


def describe_lack(num_cpus: float, num_gpus: float) -> str | None:
    """What has to become free before there is room, or None when there is room now."""
    free = ray.available_resources()
    for name, needed in (("CPU", num_cpus), ("GPU", num_gpus)):
        if needed > free.get(name, 0):
            return f"it waits for {needed:g} {name}, the cluster has {free.get(name, 0):g} free"
    return None


def _dashboard_url() -> str | None:
    url = ray.get_runtime_context().gcs_address and getattr(ray._private.worker.global_worker.node, "webui_url", None)
    return f"http://{url}" if url else None
