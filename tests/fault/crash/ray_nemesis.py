# SPDX-License-Identifier: Apache-2.0
"""Kills and stops the workers of a cluster's jobs at random until it is stopped.

It waits for progress between two strikes, but only for a limited time. Workers that never make progress would test only
their start-up, and on a busy machine a job would never end.
"""

import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from threading import Event, Thread
from time import monotonic

import psutil
from ray.util.state import list_actors

ROLES = ("EncoderActor", "StoreActor", "ReaderActor")
KILL_SHARE = 0.6
WITHOUT_WORK_S = 60.0
"""Longest time between two strikes without progress."""


@dataclass
class WorkerNemesis:
    """Thread that strikes one worker every `every_s` (on average) while it is armed."""

    address: str
    random: Random
    every_s: float
    work_done: Callable[[], int] = lambda: 0
    """Function that returns a number which grows with the progress of the running job."""
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """Errors of listing the workers, counted by message."""

    def __post_init__(self) -> None:
        self._end = Event()
        self.armed = Event()
        self._struck_s, self._struck_at = monotonic(), -1
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def workers(self) -> list[tuple[str, psutil.Process]]:
        """Return role and process of every living worker."""
        found = []
        actors = list_actors(address=self.address, detail=True, filters=[("state", "=", "ALIVE")], limit=1000)
        for actor in actors:
            if actor.class_name in ROLES and actor.pid:
                with suppress(psutil.NoSuchProcess):
                    found.append((actor.class_name, psutil.Process(actor.pid)))
        return sorted(found, key=lambda each: each[1].pid)

    def kill_with_driver(self, driver: "subprocess.Popen[bytes]", workers: list[tuple[str, psutil.Process]]) -> None:
        """Send SIGKILL to the driver and at once to all of these workers."""
        driver.kill()
        for role, process in workers:
            self._kill(role, process, "kills_with_driver")

    def _run(self) -> None:
        while not self._end.wait(self.random.uniform(0.5, 1.5) * self.every_s):
            if not self.armed.is_set() or not self._has_worked():
                continue
            try:
                workers = self.workers()
            except Exception as error:  # noqa: BLE001 - the dashboard is busy, or the cluster ends; counted
                self.errors[type(error).__name__] += 1
                continue
            if workers:
                # equal shares of the roles, whatever their numbers
                role = self.random.choice(sorted({role for role, _ in workers}))
                self._strike(role, self.random.choice([process for each, process in workers if each == role]))
                self._struck_s, self._struck_at = monotonic(), self.work_done()

    def _has_worked(self) -> bool:
        return self.work_done() != self._struck_at or monotonic() - self._struck_s > WITHOUT_WORK_S

    def _strike(self, role: str, process: psutil.Process) -> None:
        if self.random.random() < KILL_SHARE:
            self._kill(role, process, "kills")
            return
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            self.counts[f"stops {role}"] += 1
            self._end.wait(self.random.uniform(1, 6))
            process.resume()

    def _kill(self, role: str, process: psutil.Process, what: str) -> None:
        with suppress(psutil.NoSuchProcess):
            process.kill()
            self.counts[f"{what} {role}"] += 1
