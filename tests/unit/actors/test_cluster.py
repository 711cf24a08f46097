# SPDX-License-Identifier: Apache-2.0
"""A known Ray head that does not respond: reported at once, where Ray itself retries for minutes."""

import os
import socket
from collections.abc import Iterator

import pytest

from actors.admission import Head
from actors.cluster import NoClusterError, _init, connect, find_cluster, in_one_line, join
from actors.config import AUTO, LOCAL
from longmem.errors import ClusterError, ConfigError


@pytest.fixture
def dead_head(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `auto` lead to a port without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    return address


@pytest.fixture
def stopped_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make `auto` lead to a port that accepts connections without a response, like a stopped process."""
    monkeypatch.setattr("actors.admission.CONNECT_S", 0.5)
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
    with pytest.raises(ClusterError, match=f"nothing answers at '{stopped_head}' .*does not respond for"):
        find_cluster()
    with pytest.raises(ClusterError, match=f"nothing answers at '{stopped_head}' .*does not respond for"):
        join(AUTO)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is that of a dashboard"),
        ("head", "expected HOST:PORT"),
        ("head:port", "expected HOST:PORT"),
        (":6379", "expected HOST:PORT"),
        ("head:65536", "expected HOST:PORT"),
        ("ray://head", "expected HOST:PORT"),
    ],
)
@pytest.mark.parametrize("through", ["option", "environment"])
def test_join_with_an_address_that_is_none_says_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, address: str, message: str, through: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=message):
        join(address if through == "option" else AUTO)


def test_auto_with_a_dead_address_in_the_environment_starts_no_other_cluster(dead_head: str) -> None:
    """Fail for an address that the user has named: another cluster would run the job in the wrong place."""
    with pytest.raises(ClusterError, match=f"nothing answers at '{dead_head}'"):
        connect(AUTO, num_cpus=1, object_store_bytes=None)


def test_auto_with_a_dead_cluster_on_record_is_no_cluster(dead_head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore a stale /tmp/ray/ray_current_cluster after a crash, which the user has not named."""
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("actors.admission.services.find_gcs_addresses", FoundNothing())
    monkeypatch.setattr("actors.admission.services.find_bootstrap_address", lambda _folder: dead_head)
    assert find_cluster() is None
    with pytest.raises(NoClusterError) as caught:
        join(AUTO)
    assert caught.value.before == f"the Ray cluster that is on record here, at {dead_head}, has ended: "


class FoundNothing:
    """Result of Ray's search for GCS processes on a machine without one."""

    def __call__(self) -> set[str]:
        return set()

    def cache_clear(self) -> None:
        pass


def test_versions_that_differ_are_named_on_both_sides() -> None:
    from ray._private.utils import check_version_info

    theirs = {"ray_version": "2.1.0", "python_version": "3.9.1"}
    with pytest.raises(RuntimeError) as caught:
        check_version_info(theirs, "here")
    text = in_one_line(caught.value)
    assert text.startswith("it runs Ray 2.1.0 on Python 3.9.1, this process Ray "), text
    assert text.endswith("install the same versions on both sides"), text


@pytest.mark.parametrize(
    ("address", "deaths", "message", "attempts"),
    [
        ("ray://127.0.0.1:1", 2, "psutil.ZombieProcess: PID still exists", 3),
        ("ray://127.0.0.1:1", 9, "Proxy failed to Connect to backend!", 3),
        ("ray://127.0.0.1:1", 9, "another reason", 1),
        ("127.0.0.1:1", 9, "psutil.ZombieProcess: PID still exists", 1),
    ],
)
def test_join_client_process_dies_is_tried_three_times(
    monkeypatch: pytest.MonkeyPatch, address: str, deaths: int, message: str, attempts: int
) -> None:
    """Check observed texts of Ray; a real death of that process takes a minute (tests/end_to_end/test_tokens.py)."""
    begun: list[str] = []
    told: list[str] = []

    def init(address: str, **_: object) -> None:
        begun.append(address)
        if len(begun) <= deaths:
            raise ConnectionError(f"Initialization failure from server:\n{message}")

    monkeypatch.setattr("actors.cluster.ray.init", init)
    if deaths < attempts:
        _init(Head(address, "named"), told.append)
    else:
        with pytest.raises(ClusterError, match=message):
            _init(Head(address, "named"), told.append)
    assert begun == [address] * attempts
    lost = f"the Ray cluster at {address} lost its process for this client; attempt"
    assert told == [f"{lost} {attempt} of 3" for attempt in range(2, attempts + 1)]


@pytest.mark.parametrize(("chosen", "given"), [(None, "1"), ("4", "4")])
def test_processes_that_are_started_have_one_heap(
    chosen: str | None, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the environment during the start and after it."""
    seen = []

    def start(**_options: object) -> None:
        seen.append(os.environ.get("MALLOC_ARENA_MAX"))
        raise RuntimeError("no cluster in this test")

    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MALLOC_ARENA_MAX", chosen)
    monkeypatch.setattr("actors.cluster.ray.init", start)
    with pytest.raises(ClusterError, match="no cluster in this test"):
        connect(LOCAL, num_cpus=1, object_store_bytes=None)
    assert seen == [given]
    assert os.environ.get("MALLOC_ARENA_MAX") == chosen


def test_a_start_that_is_too_slow_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the plain Exception that Ray raises for a slow start."""

    def slow(**_options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen\n because of  the raylet.")

    monkeypatch.setattr("actors.cluster.ray.init", slow)
    with pytest.raises(ClusterError, match=r"cannot start Ray .* timed out during startup\. This .*--address none"):
        connect(LOCAL, num_cpus=1, object_store_bytes=None)


@pytest.mark.parametrize(
    ("num_bytes", "shared", "message"),
    [
        (10**15, 10**15, r"1,000,000,000,000,000 bytes does not fit: this machine has [\d,]+ bytes of memory; give"),
        (11 * 10**9, 64 * 2**20, r"/dev/shm has 67,108,864 bytes free; give --object-store-bytes less, make /dev/shm"),
    ],
)
@pytest.mark.timeout(30)
def test_connect_object_store_that_does_not_fit_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, shared: int, message: str
) -> None:
    def started(**_options: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("actors.cluster.ray.init", started)
    monkeypatch.setattr("actors.cluster.get_shared_memory_bytes", lambda: shared)
    if num_bytes < 10**15:
        monkeypatch.setattr("actors.cluster.get_system_memory", lambda: 10**14)
    with pytest.raises(ConfigError, match=message):
        connect(LOCAL, num_cpus=1, object_store_bytes=num_bytes)
