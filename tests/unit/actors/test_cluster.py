"""A Ray head that is known and does not answer: told at once, where Ray itself tries for minutes."""

import socket

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


@pytest.mark.timeout(30)
def test_looking_for_a_cluster_does_not_wait_for_a_dead_one(dead_head: str) -> None:
    with pytest.raises(ClusterError, match=f"nothing answers at '{dead_head}'"):
        find_cluster()


@pytest.mark.timeout(30)
def test_joining_does_not_wait_for_a_dead_one(dead_head: str) -> None:
    with pytest.raises(ClusterError, match=f"nothing answers at '{dead_head}'"):
        join(AUTO)
