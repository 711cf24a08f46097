"""Slices: a job that is resumed is computed in several of them, and its seconds are the sum over all.

`slices.json` holds one entry for each process that worked on the job. It is written again every few seconds, so that a
slice that ends by SIGKILL or a power cut counts up to its last record. What is not counted: at most the seconds and
tasks since that record, and all that comes before and after the work itself (loading the model, starting workers,
writing results).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from longmem.errors import OutputError
from pipelines.job.output import write_json

SLICES_FILE = "slices.json"
RECORD_S = 2.0


class Slices:
    """The slices of one job; the last one is that of this process. Raises OutputError."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path = folder / SLICES_FILE
        self._clock = clock
        self._recorded_s: float | None = None
        self.earlier: list[dict[str, Any]] = self._read()

    def _read(self) -> list[dict[str, Any]]:
        try:
            return [dict(each) for each in json.loads(self._path.read_text(encoding="utf-8"))["slices"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self._path} is damaged ({error}); remove it to go on without the seconds of earlier slices"
            ) from error

    @property
    def is_due(self) -> bool:
        """True when the last record is old."""
        return self._recorded_s is None or self._clock() - self._recorded_s >= RECORD_S

    def record(self, work: Mapping[str, Any]) -> None:
        """Replace the entry of this process by what it has done until now: numbers, by name, in any depth."""
        write_json(self._path, {"slices": [*self.earlier, dict(work)]})
        self._recorded_s = self._clock()

    def total(self, work: Mapping[str, Any]) -> dict[str, Any]:
        """Sums over all slices, this process's last one included."""
        total: dict[str, Any] = dict(work)
        for each in self.earlier:
            total = _sum(total, each)
        return total


def _sum(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Number by number; what only one side has counts as it is."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    summed: dict[str, Any] = {}
    for name in names:
        left, right = ours.get(name, 0), theirs.get(name, 0)
        if isinstance(left, Mapping) or isinstance(right, Mapping):
            summed[name] = _sum(left or {}, right or {})
        else:
            summed[name] = left + right
    return summed
