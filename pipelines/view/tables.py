# SPDX-License-Identifier: Apache-2.0
"""Files of a finished job: its summary, and tables whose row groups are read on demand."""

import json
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError
from longmem.wording import reason_of
from pipelines.watch.status import unfinished

SUMMARY = "summary.json"
KEPT_GROUPS = 4
"""Row groups of each table that stay in memory: at most 12 bytes for each of a million tokens, and a few megabytes."""


class GroupedTable:
    """Columns of a parquet file, whose row groups are read on demand; the last ones used stay in memory."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._file = pq.ParquetFile(path)
        self._columns = [name for name in columns if name in self._file.schema_arrow.names]
        counts = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        self._ends = np.cumsum(counts).tolist()
        self._group: Callable[[int], pa.Table] = lru_cache(KEPT_GROUPS)(self._read)

    @property
    def columns(self) -> list[str]:
        """Return those of the columns asked for that the file has."""
        return self._columns

    @property
    def num_rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def rows(self, first: int, last: int) -> pa.Table:
        """Return rows `first` to `last`, the latter not included."""
        parts = []
        for index in range(bisect_right(self._ends, first), len(self._ends)):
            begin = self._ends[index - 1] if index else 0
            if begin >= last:
                break
            parts.append(self._group(index).slice(max(first - begin, 0), last - max(first, begin)))
        return pa.concat_tables(parts) if parts else self._file.schema_arrow.empty_table().select(self._columns)

    def _read(self, index: int) -> pa.Table:
        return self._file.read_row_group(index, columns=self._columns)


def written_anew(path: Path) -> str:
    """Return the advice for a folder whose tables are damaged."""
    return (
        f"remove {SUMMARY} and write summary and tables anew from the journal with: longmem resume {quote(str(path))}"
    )


def read_summary(path: Path) -> dict[str, Any]:
    """Return summary.json of a finished job. Raises ConfigError."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder; name the --out folder of a finished job")
    try:
        summary = dict(json.loads((path / SUMMARY).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(unfinished(path)) from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {path / SUMMARY}: {reason_of(error)}; {written_anew(path)}") from error
    return summary
