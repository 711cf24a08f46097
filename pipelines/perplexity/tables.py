# SPDX-License-Identifier: Apache-2.0
"""Arrow tables of a job's records: columns, types and row order of the parquet files."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, SegmentRecord
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


NLL_WINDOW = pa.field("nll_window", pa.float64())
"""Last column of documents.parquet and segments.parquet, only with `--window`."""
LOGPROB_WINDOW = pa.field("logprob_window", pa.float32())
"""Last column of tokens.parquet, only with `--window`."""


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
            row["nll_backbone"] = float(np.sum([segment.nll_backbone for segment in segments]))
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
        columns = {
            "document": pa.repeat(record.document, record.num_tokens),
            "segment": pa.repeat(record.segment, record.num_tokens),
            "position": record.start_token + 1 + np.arange(record.num_tokens),
            "token": record.tokens.targets,
            "logprob_longmem": record.tokens.logprobs_longmem,
            "logprob_backbone": record.tokens.logprobs_backbone,
        }
        if windows is not None:
            logprobs = windows.logprobs.get(record.document, np.empty(0, np.float32))
            columns[LOGPROB_WINDOW.name] = logprobs[record.start_token : record.start_token + record.num_tokens]
        tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()
