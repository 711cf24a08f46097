"""Jobs on clusters that somebody else has started: through Ray's client, as a submitted job, and two at once; and who
may talk to a cluster that a job starts."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from longmem.testing import small_longmem

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 240.0
TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet")
ROOT = Path(__file__).parents[2]
LONGMEM = [sys.executable, "-c", "from pipelines.cli import main; main()", "perplexity"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a book, and what a run without Ray says of it."""
    folder = tmp_path_factory.mktemp("addresses")
    small_longmem(folder).save_pretrained(folder / "model")
    (folder / "book.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 40)
    finish(start(folder, "none", "none"))
    return folder


def options(folder: Path, address: str, name: str) -> list[str]:
    options = ["--model", str(folder / "model"), "--threads", "1", "--tokens", "--address", address]
    return [str(folder / "book.txt"), *options, "--out", str(folder / name)]


def start(folder: Path, address: str, name: str, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*LONGMEM, *options(folder, address, name), *more],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Output of a process that ends well."""
    with process:
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 0, output
    return output


def assert_same(folder: Path, name: str) -> None:
    for table in TABLES:
        assert (folder / name / table).read_bytes() == (folder / "none" / table).read_bytes(), table


@dataclass(frozen=True)
class Head:
    """A head node with two CPUs, and the ports where it listens."""

    gcs: int
    client: int
    dashboard: int


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head(free_port(), free_port(), free_port())
    # a short path, because it becomes the name of a Unix socket
    temporary = tempfile.mkdtemp(prefix="lm-", dir="/tmp")
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    ports = [f"--port={head.gcs}", f"--ray-client-server-port={head.client}", f"--dashboard-port={head.dashboard}"]
    size = ["--num-cpus=2", f"--object-store-memory={2**27}", "--dashboard-host=127.0.0.1"]
    log = Path(temporary) / "start.log"
    with log.open("wb") as output:
        # --block: it ends with its own processes, where `ray stop` would end those of every cluster on the machine
        process = subprocess.Popen(
            [*ray_start, *ports, *size, f"--temp-dir={temporary}"],
            env=environment(),
            stdout=output,
            stderr=output,
            cwd="/",
        )
    deadline = time.monotonic() + LIMIT_S
    try:
        while not all(listens(port) for port in (head.gcs, head.client, head.dashboard)):
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.1)
        yield head
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_job_through_rays_client(head: Head, folder: Path) -> None:
    finish(start(folder, f"ray://127.0.0.1:{head.client}", "client"))
    assert_same(folder, "client")


def test_two_jobs_at_once_share_the_cores(head: Head, folder: Path) -> None:
    """Each reserves one of the two CPUs for two workers, and neither waits for the other."""
    jobs = {name: start(folder, f"127.0.0.1:{head.gcs}", name, "--cpu-share", "0.5") for name in ("first", "second")}
    deadline = time.monotonic() + LIMIT_S
    while not all(num_lines(folder / name / "journal.jsonl") >= 3 for name in jobs):
        for name, process in jobs.items():
            assert process.poll() is None, f"{name} ended before the other one advanced: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for name, process in jobs.items():
        finish(process)
        assert_same(folder, name)


def num_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
def test_a_submitted_job(head: Head, folder: Path) -> None:
    """`ray job submit -- longmem perplexity …`: the driver then runs on the cluster."""
    entry = [*LONGMEM, *options(folder, "auto", "submitted")]
    address = f"http://127.0.0.1:{head.dashboard}"
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--", *entry]
    process = subprocess.Popen(
        submit, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    assert "succeeded" in finish(process)
    assert_same(folder, "submitted")


CONNECT = """
import json
from pathlib import Path
import urllib.error, urllib.request
import psutil
from actors.cluster import connect

connection = connect("local", num_cpus=1, object_store_bytes=2**27)
url = connection.dashboard_url
token = (Path.home() / ".ray" / "auth_token").read_text().strip()

def status(headers):
    request = urllib.request.Request(f"{url}/api/v0/actors", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code

port = int(url.rpartition(":")[2])
listening = [each for each in psutil.net_connections("tcp") if each.laddr.port == port and each.status == "LISTEN"]
hosts = sorted({each.laddr.ip for each in listening})
print(json.dumps({"none": status({}), "wrong": status({"Authorization": "Bearer wrong"}),
    "right": status({"Authorization": f"Bearer {token}"}), "hosts": hosts}))
connection.close()
"""


def test_a_cluster_of_our_own_asks_for_a_token(tmp_path: Path) -> None:
    """Ray's token authentication is on where nobody has said anything, and the dashboard is on loopback."""
    free = {name: value for name, value in environment().items() if name != "RAY_AUTH_MODE"}
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECT],
        env={**free, "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (line,) = [line for line in finish(process).splitlines() if line.startswith("{")]
    assert json.loads(line) == {"none": 401, "wrong": 403, "right": 200, "hosts": ["127.0.0.1"]}
