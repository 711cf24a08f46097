# SPDX-License-Identifier: Apache-2.0
"""Several nodes on one machine: one is lost with workers and blocks, one joins, and segments stay on their node."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from longmem.model.source import REFERENCE_MODEL
from tests.fault.crash.killed_jobs import lines_of
from tests.fault.test_jobs_survive import prose, table_bytes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 240.0
QUICK_HEALTH = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_initial_delay_ms": "5000",
}
"""Settings that detect a lost node after 3 s instead of 15."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write books, a model (its blocks are large enough for Ray's object store), and the results of an undisturbed
    run."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "checkpoint").symlink_to(REFERENCE_MODEL)
    (folder / "books").mkdir()
    for number in range(3):
        (folder / "books" / f"{number}.txt").write_text(prose(number, 700), "utf-8")
    with job(folder / "undisturbed", {}) as process:
        assert process.wait(LIMIT_S) == 0, log_of(folder / "undisturbed")
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a head node without CPUs, on which driver and store are; tests add others."""
    from ray.cluster_utils import Cluster

    for name, value in QUICK_HEALTH.items():
        monkeypatch.setenv(name, value)
    arguments = {"num_cpus": 0, "object_store_memory": 2**27, "include_dashboard": False, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()


def add_node(cluster: Any, num_cpus: int, **options: Any) -> Any:
    return cluster.add_node(num_cpus=num_cpus, object_store_memory=2**27, **options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def job(out: Path, shape: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.job_on_nodes", str(out), json.dumps(shape)],
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def log_of(out: Path) -> str:
    return out.with_suffix(".log").read_text("utf-8")


def until(process: subprocess.Popen[bytes], out: Path, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert process.poll() is None, f"the job ended too early\n{log_of(out)}"
        assert time.monotonic() < deadline, log_of(out)
        time.sleep(0.02)


def record_of(folder: Path, name: str) -> dict[str, Any]:
    """Return the record of a finished job, whose results equal those of the undisturbed one."""
    assert table_bytes(folder / name) == table_bytes(folder / "undisturbed")
    record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return record


def share_near(sent: list[list[Any]]) -> float:
    """Return the share of segments that were scored last on the node where they were encoded last."""
    nodes: dict[str, dict[tuple[str, int], str]] = {"encode": {}, "put": {}, "score": {}}
    for stage, document, segment, _, node in sent:
        nodes[stage][document, segment] = node
    return sum(nodes["encode"][place] == node for place, node in nodes["score"].items()) / len(nodes["score"])


def test_a_job_loses_a_node(cluster: Any, folder: Path) -> None:
    add_node(cluster, 4)
    doomed = add_node(cluster, 4)
    shape = {"address": cluster.address, "encoders": 2, "readers": 2, "placement": "spread"}
    with job(folder / "two", shape) as process:
        assert process.wait(LIMIT_S) == 0, log_of(folder / "two")
    calm = record_of(folder, "two")
    workers = {(worker, node) for stage, _, _, worker, node in calm["sent"] if stage != "put"}
    assert len({node for _, node in workers}) == 2, f"not spread: {workers}"
    assert len(workers) == 4
    assert share_near(calm["sent"]) > 0.5, calm["sent"]

    out = folder / "lost"
    with job(out, shape) as process:
        until(process, out, lambda: lines_of(out / "journal.jsonl") >= 8)
        cluster.remove_node(doomed, allow_graceful=False)
        assert process.wait(LIMIT_S) == 0, log_of(out)
    record = record_of(folder, "lost")
    kinds = [kind for _, kind, _ in record["events"]]
    assert kinds.count("lost") >= 2, record["events"]
    assert "quarantined" not in kinds
    # Ray detects the loss after 3 s, and two workers start again and load their model
    assert record["wall_s"] < calm["wall_s"] + 60, record["events"]


@pytest.mark.slow
def test_a_node_that_joins_is_used(cluster: Any, folder: Path) -> None:
    add_node(cluster, 2)
    out = folder / "joined"
    shape = {"address": cluster.address, "encoders": 2, "readers": 2, "placement": "spread", "elastic": True}
    with job(out, shape) as process:
        until(process, out, lambda: lines_of(out / "journal.jsonl") >= 4)
        out.with_suffix(".held").touch()
        late = add_node(cluster, 2)
        until(process, out, lambda: log_of(out).count(" is ready (process ") == 2)
        out.with_suffix(".held").unlink()
        assert process.wait(LIMIT_S) == 0, log_of(out)
    record = record_of(folder, "joined")
    assert [kind for _, kind, _ in record["events"]] == ["back", "back"]
    mine = {worker for _, _, _, worker, node in record["sent"] if node == late.node_id}
    assert len(mine) == 2, f"the node that joined did nothing: {record['events']}"


LOST_BLOCKS = """
import json, sys
from pathlib import Path
import ray
from actors.executor.timeouts import Timeouts
from tests.scripted_driver import segments_of, start
from tests.scripted_workers import Script

ray.init(address=sys.argv[1], log_to_driver=False)
safe, doomed = ({"resources": {name: 0.1}} for name in ("safe", "doomed"))
driver = start(Script(Path(sys.argv[2])), Timeouts(max_tries=2), [doomed, safe], safe)
segments = segments_of("a", 4)
driver.run("encode", segments)
print("encoded", flush=True)
sys.stdin.readline()
for segment in segments:
    driver.executor.submit("put", segment)
    driver.executor.submit("score", segment)
driver.until(lambda: len(driver.completions) == 12)
for segment in segments:
    driver.executor.release(segment)
state = vars(driver.executor)
print(json.dumps({
    "completions": [[each.stage, each.segment.index, str(each.error)] for each in driver.completions],
    "events": [[event.kind, event.message] for event in driver.events],
    "left": len(state["_encoded"]) + len(state["_lost"]) + len(vars(state["_lost"])["_times"]),
}))
"""


def test_blocks_that_are_lost_with_their_node_are_encoded_again(cluster: Any, tmp_path: Path) -> None:
    add_node(cluster, 2, resources={"safe": 1})
    doomed = add_node(cluster, 2, resources={"doomed": 1})
    process = subprocess.Popen(
        [sys.executable, "-c", LOST_BLOCKS, cluster.address, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "encoded\n"
        cluster.remove_node(doomed, allow_graceful=False)
        output, _ = process.communicate("\n", timeout=LIMIT_S)
    finally:
        process.kill()
        process.communicate()
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    said = json.loads(line)
    stages = ("encode", "put", "score")
    assert sorted(said["completions"]) == [[stage, index, "None"] for stage in stages for index in range(4)]
    kinds = [kind for kind, _ in said["events"]]
    # two of the four were encoded on the lost node
    assert kinds.count("encoded again") == 2, said["events"]
    assert kinds.count("lost") == 1
    assert "retry" not in kinds
    assert said["left"] == 0
