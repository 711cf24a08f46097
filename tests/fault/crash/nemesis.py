# SPDX-License-Identifier: Apache-2.0
"""Selection of the fault that ends each life of a writer, and delivery of its signals."""

import os
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from threading import Lock
from time import sleep

from longmem.store.lance.writer import STEPS

STOP_SHARE = 0.3
MAX_OPERATIONS = 40
"""Maximal number of operations of one life; a step not reached by then counts as missed."""
OPERATION_S = 0.03
"""Approximate duration of one operation: a signal within it hits the operation at a random point."""


STEP_SHARE = 3
"""Period of lives that end by a signal; all others end at a step of the store."""


@dataclass(frozen=True)
class Fault:
    """Fault of one process."""

    end: str
    """End: kill, stop_kill (killed while stopped), step (at a step of the store), or none (regular shutdown)."""
    operation: int
    """Number of the life's operation during which it is killed, or from which on its operations reach the step."""
    delay_s: float
    """Seconds from sending an operation to the signal."""
    stop_at: int
    """Number of the operation during which it is stopped and continued; -1 for none."""
    stop_s: float
    step: str = ""
    nth: int = 1
    max_operations: int = MAX_OPERATIONS

    @property
    def wanted_kind(self) -> str:
        """Kind of operation that reaches the step."""
        kind = self.step.partition(":")[0]
        return "put" if kind == "compact" else kind


class Nemesis:
    """Generator of faults, with counts; shared by the writers' threads."""

    def __init__(self, random: Random) -> None:
        self.counts: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        """Deaths at each step."""
        self.missed: Counter[str] = Counter()
        """Lives that ended without reaching their step."""
        self._drawn: Counter[str] = Counter()
        self._random = random
        self._lock = Lock()

    def draw(self, count: int) -> list[Fault]:
        """Return the faults of the next `count` lives; the least drawn steps come first."""
        return [self._draw(number) for number in range(count)]

    def _draw(self, number: int) -> Fault:
        random = self._random
        operation, delay_s = random.randrange(1, 8), random.random() * OPERATION_S
        stop_at = random.randrange(operation) if random.random() < STOP_SHARE else -1
        fault = Fault("kill", operation, delay_s, stop_at, random.uniform(0.1, 0.4))
        if number % STEP_SHARE:
            step = min(STEPS, key=lambda each: (self._drawn[each], random.random()))
            self._drawn[step] += 1
            return replace(fault, end="step", step=step, nth=random.choice((1, 2)) if step.startswith("put") else 1)
        end = random.choices(("kill", "stop_kill", "none"), (6, 2, 1))[0]
        return replace(fault, end=end, max_operations=operation + random.randrange(1, 5))

    def strike(self, child: "subprocess.Popen[bytes]", fault: Fault, number: int) -> None:
        """Strike while the life's operation `number` is in progress."""
        if number == fault.stop_at:
            sleep(fault.delay_s)
            self._stop(child, fault)
            if _is_dead(child):
                return
            os.kill(child.pid, signal.SIGCONT)
        elif number == fault.operation and fault.end in ("kill", "stop_kill"):
            sleep(fault.delay_s)
            if fault.end == "stop_kill":
                self._stop(child, fault)
            self._kill(child)

    def ends(self, child: "subprocess.Popen[bytes]", fault: Fault) -> None:
        """Record that a life has done all its operations."""
        if fault.end == "none":
            assert child.stdin is not None
            child.stdin.close()
            if child.wait(timeout=60):
                raise AssertionError(f"a writer that was told to end left with {child.returncode}")
            self._count("clean_ends")
            return
        if fault.step:
            with self._lock:
                self.missed[fault.step] += 1
        self._kill(child)

    def saw_death(self, code: int, fault: Fault) -> None:
        """Record that a writer died in the middle of an operation."""
        assert code == -signal.SIGKILL, f"a writer ended by itself with {code} ({fault})"
        if fault.step:
            with self._lock:
                self.steps[fault.step] += 1

    def _stop(self, child: "subprocess.Popen[bytes]", fault: Fault) -> None:
        if not _is_dead(child):
            os.kill(child.pid, signal.SIGSTOP)
            self._count("stops")
            sleep(fault.stop_s)

    def _kill(self, child: "subprocess.Popen[bytes]") -> None:
        os.kill(child.pid, signal.SIGKILL)
        self._count("kills")

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1


def _is_dead(child: "subprocess.Popen[bytes]") -> bool:
    return child.poll() is not None
