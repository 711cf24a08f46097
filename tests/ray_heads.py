# SPDX-License-Identifier: Apache-2.0
"""Heads of Ray clusters as processes of their own, started like an operator does: `ray start --head`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 120.0
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Head:
    """Ports of a head node."""

    gcs: int
    client: int
    dashboard: int

    def listens(self) -> bool:
        return all(listens(port) for port in (self.gcs, self.client, self.dashboard))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with this repository's code and without Ray's tokens and addresses."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
    return {**free, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **more}


@contextmanager
def started_heads(*environments: dict[str, str], num_cpus: int = 2) -> Iterator[list[Head]]:
    """Start one head for each environment in parallel; terminate all their processes afterwards."""
    heads = [Head(free_port(), free_port(), free_port()) for _ in environments]
    # short paths, because they become the names of Unix sockets
    folders = [Path(tempfile.mkdtemp(prefix="lm-", dir="/tmp")) for _ in environments]
    started = [
        _start(head, folder, env, num_cpus) for head, folder, env in zip(heads, folders, environments, strict=True)
    ]
    try:
        deadline = time.monotonic() + LIMIT_S
        for head, process, folder in zip(heads, started, folders, strict=True):
            while not head.listens():
                log = (folder / "start.log").read_text("utf-8")
                assert process.poll() is None, log
                assert time.monotonic() < deadline, log
                time.sleep(0.1)
        yield heads
    finally:
        for process in started:
            process.terminate()
        for process, folder in zip(started, folders, strict=True):
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _start(head: Head, folder: Path, env: dict[str, str], num_cpus: int) -> "subprocess.Popen[bytes]":
    # --block: it ends with its own processes; `ray stop` would end those of every cluster on the machine
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"]
    ports = [f"--port={head.gcs}", f"--ray-client-server-port={head.client}", f"--dashboard-port={head.dashboard}"]
    # workers take ports from the system: two heads on one machine would assign conflicting ones
    ports += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
    size = [f"--num-cpus={num_cpus}", f"--object-store-memory={2**27}", "--dashboard-host=127.0.0.1"]
    with (folder / "start.log").open("wb") as log:
        return subprocess.Popen([*command, *ports, *size], env=env, stdout=log, stderr=log, cwd="/")
