# SPDX-License-Identifier: Apache-2.0
"""Jobs on existing clusters: through Ray's client, as a submitted job, and two at once; access to a job's own
cluster."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longmem.testing import small_longmem
from tests.ray_heads import Head, environment, started_heads

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 240.0
TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet")
OPEN = environment(RAY_AUTH_MODE="disabled")
LONGMEM = [sys.executable, "-c", "from pipelines.cli import main; main()", "perplexity"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model, a book, and the results of a run without Ray."""
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
        env=OPEN,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Return the output of a process that succeeds."""
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


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Yield a head node with two CPUs."""
    with started_heads(OPEN) as (head,):
        yield head


@pytest.mark.slow
def test_a_job_through_rays_client(head: Head, folder: Path) -> None:
    finish(start(folder, f"ray://127.0.0.1:{head.client}", "client"))
    assert_same(folder, "client")


def test_two_jobs_at_once_share_the_cores(head: Head, folder: Path) -> None:
    """Check that each job reserves one of the two CPUs for two workers, and neither waits for the other."""
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
    """Run `ray job submit -- longmem perplexity …`: the driver then runs on the cluster."""
    entry = [*LONGMEM, *options(folder, "auto", "submitted")]
    address = f"http://127.0.0.1:{head.dashboard}"
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--", *entry]
    process = subprocess.Popen(
        submit, env=OPEN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    assert "succeeded" in finish(process)
    assert_same(folder, "submitted")


CONNECT = """
import json, os
from pathlib import Path
import urllib.error, urllib.request
import psutil, ray
from actors.cluster import connect
from actors.workers.store import recent_bytes

connection = connect("local", num_cpus=1, object_store_bytes=2**28)
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
@ray.remote
def worker():
    return os.environ["MALLOC_ARENA_MAX"], recent_bytes(1), recent_bytes(64)

heaps, *recent = ray.get(worker.remote())
print(json.dumps({"heaps": heaps, "recent": recent, "none": status({}),
    "wrong": status({"Authorization": "Bearer wrong"}),
    "right": status({"Authorization": f"Bearer {token}"}), "hosts": hosts}))
connection.close()
"""


def test_a_cluster_of_our_own(tmp_path: Path) -> None:
    """Check that Ray's token authentication is on by default, and that the dashboard is on loopback.

    Its processes have one heap, and stores' newest blocks take a quarter of its object store.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECT],
        env=environment(HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (line,) = [line for line in finish(process).splitlines() if line.startswith("{")]
    shown = json.loads(line)
    assert (shown.pop("heaps"), shown.pop("recent")) == ("1", [2**28 // 4, 2**25])
    assert shown == {"none": 401, "wrong": 403, "right": 200, "hosts": ["127.0.0.1"]}
