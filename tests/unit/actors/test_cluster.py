"""A Ray head that is known and does not answer: told at once, where Ray itself tries for minutes."""

import socket
from collections.abc import Iterator

import pytest

from actors.cluster import AUTO, find_cluster, join
from longmem.errors import ClusterError


@pytest.fixture
def dead_head(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where `auto` leads: a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    return address


@pytest.fixture
def stopped_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where `auto` leads: a port that the system opens to callers with nobody behind it, as of a stopped process."""
    monkeypatch.setattr("actors.cluster.CONNECT_S", 0.5)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address


@pytest.mark.timeout(30)
def test_looking_for_a_cluster_does_not_wait_for_a_dead_one(dead_head: str) -> None:
    with pytest.raises(ClusterError, match=f"nothing answers at '{dead_head}'"):
        find_cluster()


@pytest.mark.timeout(30)
def test_joining_does_not_wait_for_a_dead_one(dead_head: str) -> None:
    with pytest.raises(ClusterError, match=f"nothing answers at '{dead_head}'"):
        join(AUTO)


@pytest.mark.timeout(30)
def test_a_stopped_head_is_told_too(stopped_head: str) -> None:
    with pytest.raises(ClusterError, match=f"nothing answers at '{stopped_head}' .*says nothing for"):
        find_cluster()
    with pytest.raises(ClusterError, match=f"nothing answers at '{stopped_head}' .*says nothing for"):
        join(AUTO)
