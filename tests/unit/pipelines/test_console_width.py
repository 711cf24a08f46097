# SPDX-License-Identifier: Apache-2.0
"""Result tables fit 80 columns, without truncation or wrapped cells, for the largest figures that jobs have."""

import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.icl.console import print_result as print_icl
from pipelines.perplexity.console import print_result as print_perplexity
from pipelines.probe.console import print_trials
from pipelines.suffix.report import print_suffix_result

OUT = Path("/runs/out")
MEMORY_SHOTS = [0, 20, 200, 2000, 20_000]


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1}


def perplexity(console: Console) -> None:
    units = {"token": 12_345.678, "word": 1_234_567_890.0, "byte": 2.345}
    summary = {
        "counts": {"tokens": 123_456_789, "documents": 12_345},
        "perplexity": {
            unit: {side: interval(value) for side in ("longmem", "backbone")} for unit, value in units.items()
        },
        "nats": {"longmem": 123_456_789.0, "backbone": 123_456_789.0},
        "change": interval(-0.12345),
        "model": {"trained": False},
        "settings": {"copy_head": True, "memory_tokens": 65_536},
        "wall_s": 123_456.7,
        "failures": [],
    }
    print_perplexity(console, summary, OUT)


def icl(console: Console) -> None:
    grid = [
        {
            "model": side,
            "shots": shots,
            "memory_shots": memory_shots,
            "mean": 0.1234,
            "std": 0.0123,
            "shots_in_context": shots,
            "metric": "accuracy",
            "scoring": "normalised",
        }
        for side in ("longmem", "backbone")
        for shots in (0, 20)
        for memory_shots in MEMORY_SHOTS
    ]
    baselines = {"majority_label": "entailment", "majority_accuracy": 0.5, "random_accuracy": 0.3}
    task = {"grid": grid, "items": 123_456, "baselines": baselines, "comparisons": [], "finding": None}
    summary = {
        "grid": {"memory_shots": MEMORY_SHOTS, "shots": [0, 20], "seeds": 6},
        "tasks": {"task": task},
        "demonstrations": {"tokens_encoded": 1_234_567, "tokens_found": 1_234_567},
        "asked": {"items": 123_456, "left_out": 1_234_567, "wall_s": 123_456.7},
    }
    print_icl(console, summary, OUT)


def suffix(console: Console) -> None:
    names = ("accuracy", "accuracy_information")
    sides = {way: {name: {"value": 1.0} for name in names} for way in ("memory", "no_memory", "backbone")}
    rows = [{"context_tokens": 1_048_576, **sides, **{f"{name}_gain": interval(-0.1234) for name in names}}]
    counts = {"examples": 123_456, "resumed_examples": 12_345}
    print_suffix_result(console, {"lengths": rows, "counts": counts, "chance": 1 / 6, "wall_s": 123_456.7}, OUT)


def probe(console: Console) -> None:
    measures = ("greedy", "chosen", "read", "chosen_without", "greedy_without")
    common: dict[str, Any] = {name: {"value": 0.123, "low": 0.101, "high": 0.145} for name in measures}
    common |= {"memory_tokens": 1_048_576, "chance": 0.0123, "shots": 16, "examples": 65_536}
    rows = [{"subject": "passkey", "depth": depth, **common} for depth in (0, 0.25, 0.5, 0.75, 1)]
    rows += [{"subject": subject, "depth": None, **common} for subject in ("lookup", "labels")]
    print_trials(console, {"conditions": rows, "num_trials": 123_456, "wall_s": 123_456.7}, OUT)


@pytest.mark.parametrize("print_table", [perplexity, icl, suffix, probe])
def test_tables_with_large_figures_fit_80_columns(print_table: Callable[[Console], None]) -> None:
    texts = []
    for width in (80, 300):
        console = Console(file=StringIO(), width=width)
        print_table(console)
        texts.append([line.strip() for line in console.file.getvalue().splitlines()])  # type: ignore[attr-defined]
    assert max(map(len, texts[0])) <= 80
    # a wider terminal changes nothing: no cell is wrapped or cut
    assert texts[0] == texts[1]


@pytest.mark.parametrize("print_table", [suffix, probe])
def test_kept_readings_are_named_with_the_command_that_shows_them(
    print_table: Callable[[Console], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OUT", tmp_path)
    shown = []
    for _ in range(2):
        console = Console(file=StringIO(), width=300)
        print_table(console)
        shown.append(console.file.getvalue())  # type: ignore[attr-defined]
        (tmp_path / "readings.parquet").touch()
    assert "longmem view" not in shown[0]
    assert f"read: longmem view {tmp_path}\n" in shown[1]
