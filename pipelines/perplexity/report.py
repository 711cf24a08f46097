# SPDX-License-Identifier: Apache-2.0
"""HTML report of a perplexity job: one file without scripts or network requests."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.html.charts import MAX_NATS, SMOOTHING, distance_chart, document_charts, total_distances
from pipelines.html.page import REPORT_NAME, write_page
from pipelines.job.format import FILTERS, figure, interval, percent_digits, signed_percent
from pipelines.job.summary import (
    cause_of_change,
    has_baseline,
    reads_memory,
    side_names,
    why_no_baseline,
    why_no_change,
)
from pipelines.perplexity.spread import spread_remarks

MAX_CHARTS = 12
MAX_ROWS = 1000
"""Maximum rows of the table of documents: a page with tens of thousands is slow; documents.parquet has all."""


@dataclass(frozen=True)
class DocumentRow:
    """Row of the table of documents; figures are None for a failed document.

    In one pass, `backbone` and `change` are None: the backbone alone did not run.
    """

    name: str
    status: str
    tokens: int | None
    words: int | None
    longmem: float | None
    backbone: float | None
    change: float | None
    window: float | None
    """Perplexity of the backbone in overlapping windows; None without that baseline."""


@dataclass(frozen=True)
class ReadStatistics:
    """Memory reads of all segments together."""

    segments: int
    """Number of segments with a non-empty memory."""
    reads: int
    gate_mean: float
    copy_mean: float
    distance_mean: float
    memory_tokens_mean: float
    empty_slots: int


def write_report(folder: Path, summary: dict[str, Any], documents: pa.Table, segments: pa.Table) -> Path:
    """Write `folder/report.html` atomically, and return its path.

    `summary` is the content of summary.json; the tables are those of documents.parquet and segments.parquet.
    Raises OutputError if the folder cannot be written.
    """
    scored = sorted({name for name, tokens in _pairs(segments, "document", "num_tokens") if tokens})
    rows = document_rows(documents, segments)
    sides = side_names(summary)
    return write_page(
        folder / REPORT_NAME,
        Path(__file__).parent,
        FILTERS,
        summary=summary,
        verdict=verdict(summary),
        remarks=spread_remarks(summary),
        sides=sides,
        no_baseline=None if has_baseline(summary) else why_no_baseline(summary),
        heads=[side[0].upper() + side[1:] for side in sides],
        charts=document_charts(scored[:MAX_CHARTS], segments, sides),
        num_scored=len(scored),
        longest=max((n for _, n in _pairs(segments, "document", "segment")), default=0) + 1,
        smoothing=SMOOTHING,
        rows=rows[:MAX_ROWS],
        num_documents=len(rows),
        reading=reading(segments),
        distances=distance_chart(segments),
        sums=_sums(summary),
    )


def verdict(summary: dict[str, Any]) -> str:
    """Return the finding in one sentence, and for an untrained model its cause."""
    if summary["perplexity"] is None:
        return "No token was scored, so there is no perplexity to report."
    if not has_baseline(summary):
        ours = summary["perplexity"]["token"]["longmem"]
        bounds = "" if ours["low"] is None else f" (95% interval {interval(ours)})"
        return f"Token perplexity is {figure(ours['value'])} {side_names(summary)[0]}{bounds}."
    value = summary["change"]["value"]
    if value is None:
        return "The two perplexities are too far apart to compare: see the nats at the end of this page."
    if not summary["model"]["trained"]:
        if not reads_memory(summary):
            change = signed_percent(value)
            return f"{why_no_change(summary)}: no difference is expected, and the measured change is {change}."
        return f"{_effect(summary)} {cause_of_change(summary)}"
    return _effect(summary)


def _effect(summary: dict[str, Any]) -> str:
    value, low, high = (summary["change"][part] for part in ("value", "low", "high"))
    subject = "Memory" if summary["settings"].get("memory_tokens", 1) else "The SideNet, with its memory off,"
    effect = (
        f"{subject} {'lowered' if value < 0 else 'raised'} token perplexity by {percent_digits(abs(value), value)}%"
    )
    if low is None or high is None:
        return f"{effect}, measured on a single segment: too little for an interval."
    if low <= 0 <= high:
        return (
            f"{subject} made no measurable difference to token perplexity "
            f"({signed_percent(value)}, 95% interval {signed_percent(low)} to {signed_percent(high)})."
        )
    near, far = sorted((abs(low), abs(high)))
    return f"{effect} (95% interval {percent_digits(near, value)}–{percent_digits(far, value)}%)."


def document_rows(documents: pa.Table, segments: pa.Table) -> list[DocumentRow]:
    """Return the rows of documents by name. Perplexity divides by predicted tokens, which only the segments record."""
    predicted: dict[str, int] = {}
    for name, tokens in _pairs(segments, "document", "num_tokens"):
        predicted[name] = predicted.get(name, 0) + tokens

    def per_token(function: Callable[[float], float], row: dict[str, Any], nats: float | None) -> float | None:
        tokens = predicted.get(row["document"], 0)
        if row["status"] != "scored" or not tokens or nats is None:
            return None
        return function(min(nats / tokens, MAX_NATS))

    def change(row: dict[str, Any]) -> float | None:
        ours, alone = row["nll_longmem"], row["nll_backbone"]
        return None if ours is None or alone is None else ours - alone

    return [
        DocumentRow(
            name=row["document"],
            status=row["status"],
            tokens=row["num_tokens"],
            words=row["num_words"],
            longmem=per_token(math.exp, row, row["nll_longmem"]),
            backbone=per_token(math.exp, row, row["nll_backbone"]),
            change=per_token(math.expm1, row, change(row)),
            window=per_token(math.exp, row, row.get("nll_window")),
        )
        for row in documents.sort_by("document").to_pylist()
    ]


def reading(segments: pa.Table) -> ReadStatistics | None:
    """Return totals and means of the retrieval columns, or None if memory was never read.

    Gate and copy share are weighted by tokens, distance by reads, because each segment averaged over these.
    """
    reads_by_distance = total_distances(segments)
    if not len(reads_by_distance):
        return None
    readers = segments.filter(pa.array(segments["memory_tokens"].to_numpy() > 0))
    tokens = np.maximum(readers["num_tokens"].to_numpy(), 1)
    reads = [sum(histogram or []) for histogram in readers["distance_histogram"].to_pylist()]
    return ReadStatistics(
        segments=len(readers),
        reads=int(reads_by_distance.sum()),
        gate_mean=float(np.average(readers["gate_mean"].to_numpy(), weights=tokens)),
        copy_mean=float(np.average(readers["copy_mean"].to_numpy(), weights=tokens)),
        distance_mean=float(np.average(readers["distance_mean"].to_numpy(), weights=reads)),
        memory_tokens_mean=float(np.average(readers["memory_tokens"].to_numpy(), weights=tokens)),
        empty_slots=int(readers["empty_slots"].to_numpy().sum()),
    )


def _sums(summary: dict[str, Any]) -> dict[str, str | int]:
    """Return the sums that all figures divide, by name."""
    sides = zip(("longmem", "backbone"), side_names(summary), strict=True)
    nats = {f"nats, {name}": summary["nats"][side] for side, name in sides}
    return {
        **{name: figure(value) for name, value in nats.items() if value is not None},
        "bytes": summary["counts"]["bytes"],
        "tokens not scored": summary["counts"]["unscored_tokens"],
    }


def _pairs(table: pa.Table, first: str, second: str) -> "zip[tuple[Any, Any]]":
    return zip(table[first].to_pylist(), table[second].to_pylist(), strict=True)
