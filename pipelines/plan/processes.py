# SPDX-License-Identifier: Apache-2.0
"""Resource use of this process and its descendants: CPU seconds and resident memory, by role."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from types import TracebackType
from typing import Literal, Self

import psutil

Role = Literal["driver", "encoder", "reader", "store", "daemon"]

ROLES: Mapping[str, Role] = {"Encoder": "encoder", "Reader": "reader", "Store": "store"}
"""Role by the class name in an actor's process title."""
SAMPLE_S = 1.0


@dataclass(frozen=True)
class Usage:
    """CPU seconds and resident bytes of the processes of one role; shared pages count once."""

    processes: int
    cpu_s: float
    resident_bytes: int


def usage_by_role() -> dict[Role, Usage]:
    """Return the current usage of this process and its descendants; ended processes are not counted."""
    found: dict[Role, list[tuple[float, int]]] = defaultdict(list)
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            role = "driver" if process == own else _role(process)
            times = process.cpu_times()
            found[role].append((times.user + times.system, _resident_bytes(process)))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # ended during the inspection
            continue
    return {
        role: Usage(len(processes), sum(cpu for cpu, _ in processes), sum(size for _, size in processes))
        for role, processes in found.items()
    }


def total_cpu_s() -> float:
    """Return the CPU seconds of this process and its live descendants."""
    return sum(usage.cpu_s for usage in usage_by_role().values())


def _role(process: psutil.Process) -> Role:
    title = " ".join(process.cmdline()[:1])
    if title.startswith("ray::"):
        return next((role for name, role in ROLES.items() if name in title), "daemon")
    return "daemon"


def _resident_bytes(process: psutil.Process) -> int:
    full = process.memory_full_info()
    # proportional set size: a page shared by two processes counts half for each; Linux only
    return int(getattr(full, "pss", full.rss))


class Watch:
    """Context manager that samples processes and the size of a folder periodically, and records peaks."""

    def __init__(self, folder: Path, *, every_s: float = SAMPLE_S) -> None:
        self._folder = folder
        self._every_s = every_s
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="plan-watch", daemon=True)
        self._start_cpu_s = 0.0
        self._start_busy_s = 0.0
        self._start_s = 0.0
        self.cpu_s = 0.0
        """CPU seconds of this process and its descendants from the start to the last sample."""
        self.foreign_cores = 0.0
        """Mean number of cores that other programs used."""
        self.resident_bytes = 0
        """Peak resident bytes, summed over all processes."""
        self.folder_bytes = 0
        """Peak bytes of the folder."""

    def __enter__(self) -> Self:
        self._start_cpu_s, self._start_busy_s, self._start_s = total_cpu_s(), _machine_busy_s(), perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            usages = usage_by_role().values()
            # the seconds of ended processes are missing from this sum
            self.cpu_s = max(self.cpu_s, sum(usage.cpu_s for usage in usages) - self._start_cpu_s)
            others_s = _machine_busy_s() - self._start_busy_s - self.cpu_s
            self.foreign_cores = max(0.0, others_s / (perf_counter() - self._start_s))
            self.resident_bytes = max(self.resident_bytes, sum(usage.resident_bytes for usage in usages))
            self.folder_bytes = max(self.folder_bytes, folder_bytes(self._folder))


def _machine_busy_s() -> float:
    """Return the busy core seconds of the whole machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder tree; a file that is removed meanwhile counts 0."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
