# SPDX-License-Identifier: Apache-2.0
"""Arrow tables of a job's records: columns, types and row order of the parquet files."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, SegmentRecord

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


def documents_table(journal: Journal, documents: Sequence[DocumentRecord]) -> pa.Table:
    """Return one row per document, in input order; sums are null unless every segment was scored."""
    rows = []
    for record in documents:
        row = {name: getattr(record, name, None) for name in DOCUMENT_SCHEMA.names}
        if record.status == "scored":
            segments = journal.scored(record.document)
            row["nll_longmem"] = float(np.sum([segment.nll_longmem for segment in segments]))
            row["nll_backbone"] = float(np.sum([segment.nll_backbone for segment in segments]))
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def segments_table(segments: Sequence[SegmentRecord]) -> pa.Table:
    """Return one row per scored segment."""
    rows = [{name: getattr(record, name) for name in SEGMENT_SCHEMA.names} for record in segments]
    return pa.Table.from_pylist(rows, schema=SEGMENT_SCHEMA)


def tokens_table(segments: Sequence[SegmentRecord]) -> pa.Table:
    """Return one row per predicted token."""
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
        tables.append(pa.table(columns, schema=TOKEN_SCHEMA))
    return pa.concat_tables(tables) if tables else TOKEN_SCHEMA.empty_table()
