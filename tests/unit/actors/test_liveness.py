# SPDX-License-Identifier: Apache-2.0
"""Health checks of a cluster: daemons that respond, hang, refuse connections, or end as children of this process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import grpc
import pytest

from actors.cluster_watch import GCS, RAYLET, ClusterWatch
from longmem.errors import ClusterError

LIMIT_S = 20.0


class Daemon:
    """gRPC server that answers health checks while `answers` is set."""

    def __init__(self) -> None:
        self.answers = True
        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self._check)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})]
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _check(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        while not self.answers and context.is_active():
            sleep(0.01)
        return b""

    def stop(self) -> None:
        self.answers = True
        self._server.stop(0).wait()


@pytest.fixture
def daemons(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Daemon]]:
    monkeypatch.setattr("actors.cluster_watch.PERIOD_S", 0.02)
    monkeypatch.setattr("actors.cluster_watch.ANSWER_S", 0.1)
    daemons = {GCS: Daemon(), RAYLET: Daemon()}
    yield daemons
    for each in daemons.values():
        each.stop()


def watching(daemons: dict[str, Daemon], ended: Callable[[], list[str]] = list, lost_s: float = 0.5) -> ClusterWatch:
    return ClusterWatch("the cluster", {what: each.target for what, each in daemons.items()}, ended, lost_s=lost_s)


def until_lost(watch: ClusterWatch) -> str:
    deadline = monotonic() + LIMIT_S
    while not watch.lost:
        assert monotonic() < deadline
        sleep(0.01)
    with pytest.raises(ClusterError) as caught:
        watch.check()
    watch.close()
    return str(caught.value)


def test_watch_daemons_that_answer_are_not_lost(daemons: dict[str, Daemon]) -> None:
    watch = watching(daemons)
    sleep(0.3)
    watch.check()
    with pytest.raises(ClusterError, match=r"^no worker is left$"), watch.explaining():
        raise ClusterError("no worker is left")
    watch.close()


@pytest.mark.parametrize("what", [GCS, RAYLET])
def test_watch_daemon_silent_for_too_long_is_lost(daemons: dict[str, Daemon], what: str) -> None:
    watch = watching(daemons)
    daemons[what].answers = False
    assert f"the cluster was lost: its {what} at {daemons[what].target} does not respond (for " in until_lost(watch)


def test_watch_daemon_silent_for_a_moment_is_not_lost(daemons: dict[str, Daemon]) -> None:
    watch = watching(daemons, lost_s=1.0)
    for _ in range(3):
        daemons[GCS].answers = False
        sleep(0.4)
        daemons[GCS].answers = True
        sleep(0.2)
    watch.check()
    watch.close()


def test_watch_daemon_that_is_gone_is_lost(daemons: dict[str, Daemon]) -> None:
    watch = watching(daemons)
    daemons[GCS].stop()
    assert "refuses connections" in until_lost(watch)


def test_watch_child_that_has_ended_is_lost_at_once(daemons: dict[str, Daemon]) -> None:
    gone: list[str] = []
    watch = watching(daemons, lambda: gone)
    sleep(0.1)
    watch.check()
    gone.append("head process has ended (exit status -9)")
    said = until_lost(watch)
    assert said == (
        "the cluster was lost: its head process has ended (exit status -9); a job goes on with the same command and "
        "--resume"
    )


def test_watch_calls_that_fail_are_explained_by_one_refusal(daemons: dict[str, Daemon]) -> None:
    """Check failing calls: a worker's death reaches the driver before any other sign."""
    watch = watching(daemons, lost_s=1000)
    daemons[RAYLET].stop()
    with pytest.raises(ClusterError, match=r"was lost: its node process .*refuses connections"), watch.explaining():
        raise ClusterError("no worker is left")
    watch.close()


def test_watch_broken_client_connection_is_a_cluster_error(daemons: dict[str, Daemon]) -> None:
    watch = watching(daemons)
    with pytest.raises(ClusterError, match="the connection to the cluster broke"), watch.explaining():
        raise ConnectionError("Client is shutting down.")
    watch.close()
