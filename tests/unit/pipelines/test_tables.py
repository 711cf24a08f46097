# SPDX-License-Identifier: Apache-2.0
"""Equal results give equal bytes, in the documented columns."""

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.job.folder import JobFolder
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, Record, SegmentRecord, TokenScores
from pipelines.perplexity.tables import (
    DOCUMENT_SCHEMA,
    SEGMENT_SCHEMA,
    TOKEN_SCHEMA,
    documents_table,
    segments_table,
    tokens_table,
)

LENGTHS = {"a": [4, 4, 3], "b": [2], "ünï": [4, 0]}


def segment(document: str, index: int) -> SegmentRecord:
    n = LENGTHS[document][index]
    start = sum(LENGTHS[document][:index])
    random = np.random.default_rng([len(document), index])
    logprobs = -random.random((2, n)).astype(np.float32)
    return SegmentRecord(
        document=document,
        segment=index,
        start_token=start,
        num_tokens=n,
        nll_longmem=-float(np.sum(logprobs[0], dtype=np.float64)),
        nll_backbone=-float(np.sum(logprobs[1], dtype=np.float64)),
        memory_tokens=start,
        gate_mean=0.5,
        copy_mean=0.1,
        distance_mean=2.5,
        empty_slots=1,
        distance_histogram=[0, 1, index],
        chunks_digest="ab",
        tokens=TokenScores(
            targets=np.arange(start, start + n, dtype=np.int32),
            logprobs_longmem=logprobs[0],
            logprobs_backbone=logprobs[1],
        ),
    )


SEGMENTS = [segment(document, index) for document, lengths in LENGTHS.items() for index in range(len(lengths))]
DOCUMENTS = [
    DocumentRecord(
        document=document,
        order=order,
        source=f"/books/{document}.txt",
        status="scored",
        num_tokens=sum(lengths),
        num_unscored_tokens=0,
        num_segments=len(lengths),
        num_words=2,
        num_bytes=9,
        text_digest="0",
    )
    for order, (document, lengths) in enumerate(LENGTHS.items())
]
FAILED = DocumentRecord(document="bad", order=3, source="/books/bad.txt", status="failed", error="it is empty")


def write_all(folder: Path, records: list[Record]) -> dict[str, bytes]:
    """Write Parquet files of a job whose records came in the given order."""
    with JobFolder(folder, resume=False) as job, Journal(folder / "journal.jsonl") as journal:
        for record in records:
            journal.add(record)
        documents = sorted(journal.documents.values(), key=lambda record: record.order)
        segments = [each for record in documents for each in journal.scored(record.document)]
        job.write_table("documents.parquet", documents_table(journal, documents))
        job.write_table("segments.parquet", segments_table(segments))
        job.write_table("tokens.parquet", tokens_table(segments))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_the_order_in_which_results_came_does_not_matter(tmp_path: Path) -> None:
    expected = write_all(tmp_path / "0", [*DOCUMENTS, FAILED, *SEGMENTS])
    assert set(expected) == {"documents.parquet", "segments.parquet", "tokens.parquet"}
    for seed in range(1, 4):
        records: list[Record] = [*DOCUMENTS, FAILED, *SEGMENTS]
        Random(seed).shuffle(records)
        assert write_all(tmp_path / str(seed), records) == expected


def test_columns_and_rows(tmp_path: Path) -> None:
    write_all(tmp_path / "job", [*DOCUMENTS, FAILED, *SEGMENTS])
    documents, segments, tokens = (
        pq.read_table(tmp_path / "job" / f"{name}.parquet") for name in ("documents", "segments", "tokens")
    )
    assert documents.schema.equals(DOCUMENT_SCHEMA)
    assert segments.schema.equals(SEGMENT_SCHEMA)
    assert tokens.schema.equals(TOKEN_SCHEMA)

    assert documents["document"].to_pylist() == ["a", "b", "ünï", "bad"]
    assert documents["status"].to_pylist() == ["scored", "scored", "scored", "failed"]
    bad = documents.to_pylist()[3]
    assert (bad["error"], bad["nll_longmem"], bad["num_tokens"]) == ("it is empty", None, None)
    assert list(zip(segments["document"].to_pylist(), segments["segment"].to_pylist(), strict=True)) == [
        (each.document, each.segment) for each in SEGMENTS
    ]
    for row, lengths in zip(documents.to_pylist(), LENGTHS.values(), strict=False):
        mine = tokens.filter(pa.compute.equal(tokens["document"], row["document"]))
        assert mine["position"].to_pylist() == list(range(1, sum(lengths) + 1))
        for side in ("longmem", "backbone"):
            total = -np.sum(mine[f"logprob_{side}"].to_numpy().astype(np.float64))
            assert row[f"nll_{side}"] == pytest.approx(total, rel=1e-12)


def test_a_document_that_failed_half_way_has_no_sum(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        failed = dataclasses.replace(DOCUMENTS[0], status="failed", error="NaN")
        for record in (failed, SEGMENTS[0]):
            journal.add(record)
        [row] = documents_table(journal, [failed]).to_pylist()
    assert (row["nll_longmem"], row["nll_backbone"], row["num_segments"]) == (None, None, 3)


def test_tables_of_nothing_have_their_columns(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert documents_table(journal, []).schema.equals(DOCUMENT_SCHEMA)
    assert segments_table([]).schema.equals(SEGMENT_SCHEMA)
    assert tokens_table([]).schema.equals(TOKEN_SCHEMA)
