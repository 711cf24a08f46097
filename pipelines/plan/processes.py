"""What this process and all it has started use: processor seconds and resident memory, by role."""

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

ROLES: Mapping[str, Role] = {"Encoder": "encoder", "SideNet": "reader", "Store": "store"}
"""How an actor's process title names it, and what we call it."""
SAMPLE_S = 1.0


@dataclass(frozen=True)
class Usage:
    """Processor seconds and resident bytes of the processes of one role; shared pages are counted once."""

    processes: int
    cpu_s: float
    resident_bytes: int


def usage_by_role() -> dict[Role, Usage]:
    """Of this process and its descendants, as they are now; what has ended is not counted."""
    found: dict[Role, list[tuple[float, int]]] = defaultdict(list)
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            role = "driver" if process == own else _role(process)
            times = process.cpu_times()
            found[role].append((times.user + times.system, _resident_bytes(process)))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # ended while it was looked at
            continue
    return {
        role: Usage(len(each), sum(cpu for cpu, _ in each), sum(size for _, size in each))
        for role, each in found.items()
    }


def total_cpu_s() -> float:
    """Of this process and its descendants that live."""
    return sum(usage.cpu_s for usage in usage_by_role().values())


def _role(process: psutil.Process) -> Role:
    title = " ".join(process.cmdline()[:1])
    if title.startswith("ray::"):
        return next((role for name, role in ROLES.items() if name in title), "daemon")
    return "daemon"


def _resident_bytes(process: psutil.Process) -> int:
    full = process.memory_full_info()
    # proportional: a page that two processes share is half of each; Linux only
    return int(getattr(full, "pss", full.rss))


class Watch:
    """Context manager that looks at the processes and at a folder's size now and then, and remembers peaks."""

    def __init__(self, folder: Path, *, every_s: float = SAMPLE_S) -> None:
        self._folder = folder
        self._every_s = every_s
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="plan-watch", daemon=True)
        self._start_cpu_s = 0.0
        self._start_busy_s = 0.0
        self._start_s = 0.0
        self.cpu_s = 0.0
        """Used by ours since the watch began, until the last look."""
        self.foreign_cores = 0.0
        """Cores of this machine that others kept busy meanwhile, on average."""
        self.resident_bytes = 0
        """Largest sum over all processes."""
        self.folder_bytes = 0
        """Largest size of the folder."""

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
            # processes that have ended took their seconds with them
            self.cpu_s = max(self.cpu_s, sum(usage.cpu_s for usage in usages) - self._start_cpu_s)
            others_s = _machine_busy_s() - self._start_busy_s - self.cpu_s
            self.foreign_cores = max(0.0, others_s / (perf_counter() - self._start_s))
            self.resident_bytes = max(self.resident_bytes, sum(usage.resident_bytes for usage in usages))
            self.folder_bytes = max(self.folder_bytes, folder_bytes(self._folder))


def _machine_busy_s() -> float:
    """Core seconds that the whole machine has worked."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def folder_bytes(folder: Path) -> int:
    """Sizes of all files below; a file that another process removes meanwhile counts as gone."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
