# SPDX-License-Identifier: Apache-2.0
"""Resources of a long run, sampled over time: memory, file descriptors, disk, object store."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import psutil

from tests.fault.crash.checker import bytes_on_disk

SERVERS = {"raylet": "raylet", "gcs_server": "gcs"}
MIB = 2**20

FLAT_SHARE = 0.10
FLAT_SLACK = {"rss_mib": 32.0, "fds": 20.0, "disk_mib": 32.0, "object_store_mib": 16.0}
"""Absolute slack of each series. A series grew if the last quarter's median exceeds the second's by share and slack."""


class Sampler:
    """Thread that appends a line to a file every `every_s`."""

    def __init__(
        self, path: Path, folders: dict[str, Path], object_store_bytes: Callable[[], float], every_s: float = 10.0
    ) -> None:
        self.samples: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._path = path
        self._folders = folders
        self._object_store_bytes = object_store_bytes
        self._every_s = every_s
        self._start_s = monotonic()
        self._end = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                sample = self._sample()
            except Exception as error:  # noqa: BLE001 - a failed sample is counted and reported in the summary
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.samples.append(sample)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(sample) + "\n")

    def _sample(self) -> dict[str, Any]:
        rss, fds, count = defaultdict[str, float](float), defaultdict[str, int](int), defaultdict[str, int](int)
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                group = _group(process, me)
                # read both first, so that a process that ends in between counts nowhere
                held, open_files = process.memory_info().rss, process.num_fds()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            rss[group] += held / MIB
            fds[group] += open_files
            count[group] += 1
        return {
            "at_s": round(monotonic() - self._start_s, 1),
            "rss_mib": {name: round(value, 1) for name, value in sorted(rss.items())},
            "fds": dict(sorted(fds.items())),
            "processes": dict(sorted(count.items())),
            "disk_mib": {
                name: round(bytes_on_disk(folder) / MIB, 2) for name, folder in self._folders.items() if folder.exists()
            },
            "object_store_mib": {"used": round(self._object_store_bytes() / MIB, 2)},
        }


def _group(process: psutil.Process, me: psutil.Process) -> str:
    if process == me:
        return "soak"
    name = process.name()
    if name in SERVERS:
        return SERVERS[name]
    command = " ".join(process.cmdline())
    if command.startswith("ray::"):
        return "workers"
    for sign, group in (
        ("tests.fault.crash.ray_job", "drivers"),
        ("tests.fault.crash", "store_processes"),
        ("default_worker.py", "workers"),
        ("dashboard", "dashboard"),
        ("runtime_env", "agents"),
        ("log_monitor", "agents"),
        ("monitor.py", "agents"),
    ):
        if sign in command:
            return group
    return "other"


def growth(samples: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, per series, medians of the second and of the last quarter, the slope between them, and whether it is
    flat."""
    if len(samples) < 8:
        return {}
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    hours = (
        statistics.median(each["at_s"] for each in last) - statistics.median(each["at_s"] for each in second)
    ) / 3600
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, slack in FLAT_SLACK.items():
        found[kind] = {}
        for name in sorted({name for each in samples for name in each[kind]}):
            before, after = (statistics.median(each[kind].get(name, 0) for each in part) for part in (second, last))
            found[kind][name] = {
                "second_quarter": round(before, 2),
                "last_quarter": round(after, 2),
                "per_hour": round((after - before) / hours, 2),
                "flat": after - before <= max(FLAT_SHARE * before, slack),
            }
    return found


def plot(samples: list[dict[str, Any]], path: Path) -> None:
    """Plot the four series over time as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), sharex=True)
    minutes = [each["at_s"] / 60 for each in samples]
    titles = {
        "rss_mib": "Resident memory, MiB",
        "fds": "Open file descriptors",
        "disk_mib": "Disk, MiB",
        "object_store_mib": "Object store, MiB",
    }
    for axis, (kind, title) in zip(axes.flat, titles.items(), strict=True):
        for name in sorted({name for each in samples for name in each[kind]}):
            axis.plot(minutes, [each[kind].get(name, 0) for each in samples], label=name, linewidth=0.8)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
