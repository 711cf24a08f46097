# SPDX-License-Identifier: Apache-2.0
"""Slices of a job: one for each process that worked on it. The seconds of a resumed job are the sum over all.

`slices.json` holds one entry per process. It is rewritten every few seconds, so that a slice that ends by SIGKILL or a
power cut counts up to its last record. Not counted are the seconds and tasks since that record, and everything before
and after the work itself (loading the model, starting workers, writing results).
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
    """Slices of one job; the last one belongs to this process. Raises OutputError."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path = folder / SLICES_FILE
        self._clock = clock
        self._recorded_s: float | None = None
        self.earlier: list[dict[str, Any]] = self._read()

    def _read(self) -> list[dict[str, Any]]:
        try:
            return [dict(work) for work in json.loads(self._path.read_text(encoding="utf-8"))["slices"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self._path} is damaged ({error}); remove it to go on without the seconds of earlier slices"
            ) from error

    @property
    def is_due(self) -> bool:
        """True if the last record is `RECORD_S` old or there is none."""
        return self._recorded_s is None or self._clock() - self._recorded_s >= RECORD_S

    def record(self, work: Mapping[str, Any]) -> None:
        """Replace the entry of this process by its work until now: nested mappings of numbers."""
        write_json(self._path, {"slices": [*self.earlier, dict(work)]})
        self._recorded_s = self._clock()

    def total(self, work: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sums over all slices, including `work` of this process."""
        total: dict[str, Any] = dict(work)
        for earlier in self.earlier:
            total = _sum(total, earlier)
        return total


def _sum(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the element-wise sum; a missing number counts as 0."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    summed: dict[str, Any] = {}
    for name in names:
        left, right = ours.get(name, 0), theirs.get(name, 0)
        if isinstance(left, Mapping) or isinstance(right, Mapping):
            summed[name] = _sum(left or {}, right or {})
        else:
            summed[name] = left + right
    return summed
