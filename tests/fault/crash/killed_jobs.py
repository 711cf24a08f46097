# SPDX-License-Identifier: Apache-2.0
"""Runs a whole job as a process, and kills it or its workers at random moments of its progress."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

OUR_WORKERS = ("ray::Encoder", "ray::Reader", "ray::Store")
LIMIT_S = 120.0


@contextmanager
def driver(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command in a process of its own and clean up all its descendants."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        # Ray's own processes would end when they detect it, which takes seconds
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=20)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_one(pid: int, choose: random.Random) -> bool:
    """Send SIGKILL to a random worker of the job; return False if none is running."""
    workers = []
    for process in descendants(pid):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith(OUR_WORKERS):
            workers.append(process)
    if not workers:
        return False
    victim = choose.choice(sorted(workers, key=lambda process: process.pid))
    victim.kill()
    return True


def kill_gcs(pid: int) -> None:
    """Send SIGKILL to the head process of the job's own cluster, a child of its driver."""
    children = psutil.Process(pid).children()
    (gcs,) = [child for child in children if child.cmdline()[:1] and child.cmdline()[0].endswith("/gcs_server")]
    gcs.kill()


def run_and_kill(
    arguments: list[str], out: Path, seed: int, kills: list[str], then: Sequence[str] | None = None
) -> list[str]:
    """Run a job to its end, with `kills` at random moments of its progress; return those that were sent.

    Kinds are "worker", "gcs", "driver", and "asked" (SIGTERM to the driver). A dead driver is restarted with --resume;
    once no kill is left, with the arguments `then`, if any.
    """
    choose = random.Random(seed)
    journal, log, left, done = out / "journal.jsonl", out.with_suffix(".log"), list(kills), []
    resumed = False
    while True:
        given = arguments if left or then is None else then
        with driver([*given, *(["--resume"] if resumed else [])], log) as process:
            goal = lines_of(journal) + choose.randint(2, 6)
            deadline = time.monotonic() + LIMIT_S
            while process.poll() is None:
                assert time.monotonic() < deadline, f"no progress in {LIMIT_S:g} s, {left} are left"
                if left and lines_of(journal) >= goal:
                    if left[0] == "driver":
                        done.append(left.pop(0))
                        break
                    if left[0] == "asked":
                        process.terminate()
                        assert process.wait(timeout=LIMIT_S) == 130, log.read_text("utf-8")
                        done.append(left.pop(0))
                        break
                    if left[0] == "gcs":
                        kill_gcs(process.pid)
                        assert process.wait(timeout=LIMIT_S) == 2, log.read_text("utf-8")
                        last = log.read_text("utf-8").splitlines()[-1]
                        assert last.startswith("error: the Ray cluster that this command started was lost"), last
                        assert last.endswith("a job goes on with the same command and --resume"), last
                        done.append(left.pop(0))
                        break
                    if kill_one(process.pid, choose):
                        done.append(left.pop(0))
                        goal = lines_of(journal) + choose.randint(2, 6)
                        deadline = time.monotonic() + LIMIT_S
                time.sleep(0.01)
            else:
                assert process.returncode == 0, log.read_text("utf-8")
                return done
        resumed = True


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
