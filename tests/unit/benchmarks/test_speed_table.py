# SPDX-License-Identifier: Apache-2.0
"""Tables of timed cases: CPU columns only where CPU time was measured."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.results import KEPT
from benchmarks.speed.commands import _finish
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import Timing


def test_ratios_are_to_the_first_case() -> None:
    lines = [
        BenchmarkRow("one", Timing((1.0, 2.0, 3.0), (4.0, 4.0, 4.0))),
        BenchmarkRow("two", Timing((4.0, 4.0, 4.0), (2.0, 2.0, 2.0))),
    ]
    table = SpeedTable("cases", lines, {})
    assert table.markdown().splitlines()[2:] == [
        "| case | median ms | spread | ratio | CPU ms | CPU ratio |",
        "| --- | --- | --- | --- | --- | --- |",
        "| one | 2,000.0 | 100% | 1.00 | 4,000.0 | 1.00 |",
        "| two | 4,000.0 | 0% | 2.00 | 2,000.0 | 0.50 |",
    ]


def test_a_case_without_cpu_time_has_empty_cells() -> None:
    lines = [BenchmarkRow("here", Timing((1.0, 2.0), (1.0, 2.0))), BenchmarkRow("elsewhere", Timing((3.0, 6.0)))]
    rows = [row.split("|")[2:-1] for row in SpeedTable("cases", lines, {}).markdown().splitlines()[2:]]
    assert [cell.strip() for cell in rows[0]] == ["median ms", "spread", "ratio", "CPU ms", "CPU ratio"]
    assert [cell.strip() for cell in rows[3]][2:] == ["3.00", "", ""]


def test_a_case_of_other_processes_has_no_cpu_time() -> None:
    table = SpeedTable("jobs", [BenchmarkRow("one", Timing((1.0, 2.0, 3.0)), {"tokens/s": "5"})], {})
    assert "| case | median ms | spread | ratio | tokens/s |" in table.markdown()
    assert "CPU" not in table.markdown()
    assert table.figures()["cases"]["one"]["cpu_median_s"] is None


def test_every_table_is_written_once_it_is_measured(tmp_path: Path) -> None:
    def tables() -> Iterator[SpeedTable]:
        for number in (1, 2):
            yield SpeedTable(f"table {number}", [BenchmarkRow("one", Timing((1.0, 2.0, 3.0)))], {})
            written = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
            assert len(written["tables"]) == number
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _finish(tmp_path / "speed", tables())
    assert KEPT[tmp_path / "speed.json"] == "2 tables"
    assert {path.name for path in tmp_path.iterdir()} == {"speed.json", "speed.md", "speed.png"}
