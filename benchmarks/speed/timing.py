# SPDX-License-Identifier: Apache-2.0
"""Comparable times: the cases take turns, so that other load on the machine affects all of them equally."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

import torch

REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """Repeated runs of one case, in seconds."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...] = ()
    """CPU seconds of all threads of this process; empty where a case runs in processes of its own."""

    @property
    def median_s(self) -> float:
        return median(self.wall_s)

    @property
    def cpu_median_s(self) -> float:
        return median(self.cpu_s)

    @property
    def spread(self) -> float:
        """Interquartile range divided by the median."""
        low, _, high = quantiles(self.wall_s, n=4)
        return (high - low) / self.median_s

    def figures(self) -> dict[str, Any]:
        return {
            "median_s": self.median_s,
            "spread": self.spread,
            "cpu_median_s": self.cpu_median_s if self.cpu_s else None,
            "wall_s": list(self.wall_s),
            "cpu_s": list(self.cpu_s),
        }


def take_turns(cases: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, Timing]:
    """Run every case once to warm up, then `repeats` rounds of all of them."""
    for case in cases.values():
        case()
        _finish()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            gc.collect()
            wall_s, cpu_s = perf_counter(), process_time()
            case()
            _finish()
            times[name].append((perf_counter() - wall_s, process_time() - cpu_s))
    return {name: Timing(*zip(*runs, strict=True)) for name, runs in times.items()}


def _finish() -> None:
    """Wait until the GPU has finished: calls return before their work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
