"""Which fault ends each life of a writer, and the signals themselves."""

import os
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from random import Random
from threading import Lock
from time import sleep

from longmem.memory.lance_store import STEPS

MAX_OPERATIONS = 40
"""Of one life; a step that is not reached by then is counted as missed."""
OPERATION_S = 0.03
"""About as long as one operation takes: a signal that is sent within it lands anywhere in it."""


@dataclass(frozen=True)
class Fault:
    """How one process ends."""

    kind: str
    """kill, stop (goes on afterwards, killed later), stop_kill, step, or none"""
    operation: int
    """During which of the life's operations."""
    delay_s: float = 0.0
    stop_s: float = 0.0
    step: str = ""
    nth: int = 1
    max_operations: int = MAX_OPERATIONS

    @property
    def wanted_kind(self) -> str:
        """The operation that reaches the step."""
        kind = self.step.partition(":")[0]
        return "put" if kind == "compact" else kind


class Nemesis:
    """Draws faults and counts them; shared by the writers' threads."""

    def __init__(self, random: Random) -> None:
        self.counts: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self._random = random
        self._lock = Lock()

    def draw(self, count: int) -> list[Fault]:
        """Faults of the next `count` lives; steps that were drawn least come first."""
        random = self._random
        faults = []
        drawn: Counter[str] = Counter(self.steps)
        for _ in range(count):
            kind = random.choices(("kill", "step", "stop", "stop_kill", "none"), (4, 4, 2, 1, 1))[0]
            operation = random.randrange(1, 8)
            if kind == "step":
                step = min(STEPS, key=lambda each: (drawn[each], random.random()))
                drawn[step] += 1
                nth = random.choice((1, 2)) if step.startswith("put") else 1
                faults.append(Fault(kind, operation, step=step, nth=nth))
            else:
                delay_s, stop_s = random.random() * OPERATION_S, random.uniform(0.1, 0.5)
                faults.append(Fault(kind, operation, delay_s, stop_s, max_operations=operation + random.randrange(2, 8)))
        return faults

    def strike(self, child: "subprocess.Popen[bytes]", fault: Fault) -> None:
        """Called while an operation is under way."""
        if fault.kind in ("none", "step"):
            return
        sleep(fault.delay_s)
        if fault.kind != "kill":
            os.kill(child.pid, signal.SIGSTOP)
            self._count("stops")
            sleep(fault.stop_s)
        if fault.kind == "stop":
            os.kill(child.pid, signal.SIGCONT)
        else:
            self._kill(child)

    def ends(self, child: "subprocess.Popen[bytes]", fault: Fault) -> None:
        """Called when a life has done all its operations."""
        if fault.step:
            self._count(f"missed {fault.step}")
        if fault.kind == "none":
            assert child.stdin is not None
            child.stdin.close()
            if child.wait(timeout=60):
                raise AssertionError(f"a writer that was told to end left with {child.returncode}")
            self._count("clean")
        else:
            self._kill(child)

    def saw_death(self, code: int, fault: Fault) -> None:
        """Called when a writer died in the middle of an operation."""
        assert code == -signal.SIGKILL, f"a writer ended by itself with {code} ({fault})"
        if fault.step:
            with self._lock:
                self.steps[fault.step] += 1

    def _kill(self, child: "subprocess.Popen[bytes]") -> None:
        os.kill(child.pid, signal.SIGKILL)
        self._count("kills")

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1
