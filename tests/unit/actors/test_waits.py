# SPDX-License-Identifier: Apache-2.0
"""Lines that a start on Ray prints: what it waits for, and for how long at most. Needs no running Ray."""

import os
import subprocess
import sys
from threading import Event

import pytest

from actors import capacity, cluster
from actors.capacity import AGAIN_S, FIRST_S, Room
from actors.cluster import AUTO, connect
from longmem.errors import ClusterError


def test_a_slow_start_of_a_cluster_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    heard = Event()

    def tell(text: str) -> None:
        told.append(text)
        heard.set()

    def slow(**_settings: object) -> None:
        assert heard.wait(20), "nothing was told while the start took its time"
        raise RuntimeError("the node timed out")

    monkeypatch.setattr(cluster, "SLOW_S", 0.01)
    monkeypatch.setattr(cluster, "resolve", lambda _address: None)
    monkeypatch.setattr(cluster.ray, "init", slow)
    with pytest.raises(ClusterError, match=r"cannot start Ray on this machine: the node timed out; .*--address none"):
        connect(AUTO, 1, None, tell)
    [line] = told
    assert line.startswith("starting a Ray cluster on this machine; ")
    assert "Ray gives up after about 2 minutes" in line


START = """
import subprocess, sys
import lancedb  # registers what warns
from actors import cluster
from longmem.errors import ClusterError

def start_process(**settings):
    subprocess.run([sys.executable, "-c", "pass"], check=True, preexec_fn=int)
    if settings:
        raise RuntimeError("one process is enough")

if sys.argv[1] == "alone":
    start_process()
else:
    cluster.ray.init = start_process
    try:
        cluster.connect("local", 1, None)
    except ClusterError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no process is forked here")
def test_a_start_does_not_warn_of_lancedb() -> None:
    """Start a process as Ray 2.60 starts its own, with a hook, for which lancedb 0.40 warns.

    See findings/lancedb_imported_before_ray_warns_of_forks.sh.
    """
    alone, of_ray = (
        subprocess.run([sys.executable, "-c", START, how], capture_output=True, text=True, check=True, timeout=120)
        for how in ("alone", "of Ray")
    )
    assert "lancedb fork support" in alone.stderr
    assert "lancedb fork support" not in of_ray.stderr
    assert "one process is enough" in of_ray.stdout


def test_a_quick_start_says_nothing_of_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(cluster, "SLOW_S", 20.0)
    with cluster._told_if_slow(told.append, "waiting"):
        pass
    assert told == []


@pytest.mark.parametrize(("own", "why"), [(True, "each loads the model"), (False, "1 of 2 CPUs are free; where")])
def test_slow_workers_are_told_with_the_longest_wait(monkeypatch: pytest.MonkeyPatch, own: bool, why: str) -> None:
    told: list[str] = []
    clock = iter([0.0, FIRST_S - 1, FIRST_S, FIRST_S + 1, FIRST_S + AGAIN_S])
    monkeypatch.setattr(capacity, "check_capacity", lambda *_: None)
    monkeypatch.setattr(capacity, "describe_lack", lambda *_: None)
    monkeypatch.setattr(capacity, "free_cpus", lambda: "1 of 2 CPUs are free")
    room = Room(2, 0, 600.0, told.append, "use fewer workers", own=own, clock=lambda: next(clock))
    for _ in range(4):
        room.waiting(2)
    assert len(told) == 2
    assert told[0].startswith(f"waiting for 2 workers to start, 30 s so far, at most 600 s; {why}")
