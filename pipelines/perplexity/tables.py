# SPDX-License-Identifier: Apache-2.0
"""Arrow tables of a job's records: columns, types and row order of the parquet files."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from longmem.text.segments import Passage
from longmem.types import TokenReadings
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, SegmentRecord, baseline_nats
from pipelines.perplexity.windows import WindowResults

DOCUMENT_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("num_tokens", pa.int64()),
        ("num_unscored_tokens", pa.int64()),
        ("num_segments", pa.int64()),
        ("num_words", pa.int64()),
        ("num_bytes", pa.int64()),
        ("nll_longmem", pa.float64()),
        ("nll_backbone", pa.float64()),
    ]
)
"""Columns of documents.parquet. `nll_backbone` is null in one pass, as are the columns of the backbone in the other
tables: the backbone alone did not run."""

SEGMENT_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("segment", pa.int64()),
        ("start_token", pa.int64()),
        ("num_tokens", pa.int64()),
        ("nll_longmem", pa.float64()),
        ("nll_backbone", pa.float64()),
        ("memory_tokens", pa.int64()),
        ("gate_mean", pa.float64()),
        ("copy_mean", pa.float64()),
        ("distance_mean", pa.float64()),
        ("empty_slots", pa.int64()),
        ("distance_histogram", pa.list_(pa.int64())),
        ("chunks_digest", pa.string()),
    ]
)
"""Columns of segments.parquet. `gate_mean` is the memory's share of the fusion (mean over heads), `copy_mean` the copy
head's share of the output (mean over tokens); both are 0 if nothing was read or the model has no such part."""

TOKEN_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("segment", pa.int64()),
        ("position", pa.int64()),
        ("token", pa.int32()),
        ("logprob_longmem", pa.float32()),
        ("logprob_backbone", pa.float32()),
    ]
)
"""Columns of tokens.parquet. `position` counts from the start of the document's sequence; a start token is at 0."""


READING_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("segment", pa.int64()),
        ("position", pa.int64()),
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("copy_share", pa.float32()),
        ("logprob_uncopied", pa.float32()),
        ("copied", pa.float32()),
        ("places", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("runs", pa.list_(pa.uint8())),
    ]
)
"""Columns of readings.parquet, whose rows are those of tokens.parquet. `start` and `length` are characters of the
document's text; the others are explained at `longmem.types.TokenReadings`."""

PASSAGE_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("segment", pa.int64()),
        ("start", pa.int64()),
        ("passage", pa.string()),
        ("block_starts", pa.list_(pa.int32())),
        ("block_ends", pa.list_(pa.int32())),
    ]
)
"""Columns of passages.parquet, whose rows are those of segments.parquet. `passage` is the text of the segment's
targets, which begins at character `start`; blocks are positions that the segment read at every layer."""

GROUP_ROWS = {"readings": 65_536, "passages": 256}
"""Rows of a row group, as much as is read at once of these tables: about 3 and 1 MB."""

NLL_WINDOW = pa.field("nll_window", pa.float64())
"""Last column of documents.parquet and segments.parquet, only with `--window`."""
LOGPROB_WINDOW = pa.field("logprob_window", pa.float32())
"""Last column of tokens.parquet, only with `--window`."""


def tables_of_tokens(
    segments: Sequence[SegmentRecord], windows: WindowResults | None, tell: Callable[[str], None]
) -> dict[str, pa.Table]:
    """Return the tables of a job that keeps tokens, by name; those of readings only if every segment has kept them."""
    tables = {"tokens": tokens_table(segments, windows)}
    if any(record.tokens is not None and record.tokens.readings is None for record in segments):
        tell("no readings are written: an earlier version of longmem, which kept none, has scored a part of the job")
        return tables
    return {**tables, "readings": readings_table(segments), "passages": passages_table(segments)}


def readings_table(segments: Sequence[SegmentRecord]) -> pa.Table:
    """Return one row per predicted token; every segment has kept readings."""
    tables = []
    for record in segments:
        readings, passage = _kept(record)
        found = readings.places >= 0
        bounds = np.concatenate([[0], found.sum(axis=1).cumsum()]).astype(np.int32)

        def lists(part: np.ndarray, found: np.ndarray = found, bounds: np.ndarray = bounds) -> pa.Array:
            return pa.ListArray.from_arrays(bounds, part[found])

        columns = {
            **_token_columns(record),
            "start": passage.starts,
            "length": passage.lengths,
            "copy_share": readings.copy_share,
            "logprob_uncopied": readings.uncopied,
            "copied": readings.copied,
            "places": lists(readings.places),
            "weights": lists(readings.weights),
            "runs": lists(readings.runs),
        }
        tables.append(pa.table(columns, schema=READING_SCHEMA))
    return pa.concat_tables(tables) if tables else READING_SCHEMA.empty_table()


def passages_table(segments: Sequence[SegmentRecord]) -> pa.Table:
    """Return one row per scored segment; every segment has kept readings."""
    rows = []
    for record in segments:
        readings, passage = _kept(record)
        rows.append(
            {
                "document": record.document,
                "segment": record.segment,
                "start": passage.start,
                "passage": passage.text,
                "block_starts": readings.blocks[:, 0].tolist(),
                "block_ends": readings.blocks[:, 1].tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=PASSAGE_SCHEMA)


def _kept(record: SegmentRecord) -> tuple[TokenReadings, Passage]:
    kept = record.tokens
    assert kept is not None, f"{record.document} segment {record.segment}: tokens were not kept"
    assert kept.readings is not None, f"{record.document} segment {record.segment}: readings were not kept"
    assert kept.passage is not None, f"{record.document} segment {record.segment}: the text was not kept"
    return kept.readings, kept.passage


def _token_columns(record: SegmentRecord) -> dict[str, Any]:
    return {
        "document": pa.repeat(record.document, record.num_tokens),
        "segment": pa.repeat(record.segment, record.num_tokens),
        "position": record.start_token + 1 + np.arange(record.num_tokens),
    }


def documents_table(
    journal: Journal, documents: Sequence[DocumentRecord], windows: WindowResults | None = None
) -> pa.Table:
    """Return one row per document, in input order; sums are null unless every segment was scored."""
    rows = []
    for record in documents:
        row = {name: getattr(record, name, None) for name in DOCUMENT_SCHEMA.names}
        if record.status == "scored":
            segments = journal.scored(record.document)
            row["nll_longmem"] = float(np.sum([segment.nll_longmem for segment in segments]))
            alone = baseline_nats(segments)
            row["nll_backbone"] = None if alone is None else float(np.sum(alone))
            if windows is not None:
                row[NLL_WINDOW.name] = float(np.sum([_window_nats(windows, segment) for segment in segments]))
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_with(DOCUMENT_SCHEMA, NLL_WINDOW, windows))


def segments_table(segments: Sequence[SegmentRecord], windows: WindowResults | None = None) -> pa.Table:
    """Return one row per scored segment."""
    rows = []
    for record in segments:
        row = {name: getattr(record, name) for name in SEGMENT_SCHEMA.names}
        if windows is not None:
            row[NLL_WINDOW.name] = _window_nats(windows, record)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_with(SEGMENT_SCHEMA, NLL_WINDOW, windows))


def _window_nats(windows: WindowResults, record: SegmentRecord) -> float:
    # the last segment of a document may have no target
    return windows.nats[record.document, record.segment] if record.num_tokens else 0.0


def _with(schema: pa.Schema, field: pa.Field, windows: WindowResults | None) -> pa.Schema:
    return schema if windows is None else schema.append(field)


def tokens_table(segments: Sequence[SegmentRecord], windows: WindowResults | None = None) -> pa.Table:
    """Return one row per predicted token."""
    schema = _with(TOKEN_SCHEMA, LOGPROB_WINDOW, windows)
    tables = []
    for record in segments:
        assert record.tokens is not None, f"{record.document} segment {record.segment}: tokens were not kept"
        alone = record.tokens.logprobs_backbone
        columns = {
            **_token_columns(record),
            "token": record.tokens.targets,
            "logprob_longmem": record.tokens.logprobs_longmem,
            "logprob_backbone": pa.nulls(record.num_tokens, pa.float32()) if alone is None else alone,
        }
        if windows is not None:
            logprobs = windows.logprobs.get(record.document, np.empty(0, np.float32))
            columns[LOGPROB_WINDOW.name] = logprobs[record.start_token : record.start_token + record.num_tokens]
        tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()
