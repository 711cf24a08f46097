# SPDX-License-Identifier: Apache-2.0
"""Equal results give equal bytes, in the documented columns."""

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longmem.text.segments import Passage
from longmem.types import PLACES, TokenReadings
from pipelines.job.folder import JobFolder
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, Record, SegmentRecord, TokenScores, decode, encode
from pipelines.perplexity.tables import (
    DOCUMENT_SCHEMA,
    GROUP_ROWS,
    PASSAGE_SCHEMA,
    READING_SCHEMA,
    SEGMENT_SCHEMA,
    TOKEN_SCHEMA,
    documents_table,
    segments_table,
    tables_of_tokens,
    tokens_table,
)

LENGTHS = {"a": [4, 4, 3], "b": [2], "ünï": [4, 0]}


def segment(document: str, index: int) -> SegmentRecord:
    n = LENGTHS[document][index]
    start = sum(LENGTHS[document][:index])
    found = np.arange(n)[:, None] > np.arange(PLACES)
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
            readings=TokenReadings(
                copy_share=logprobs[0] * -0.5,
                uncopied=logprobs[0],
                copied=logprobs[1] * -0.25,
                places=np.where(found, np.arange(PLACES, dtype=np.int32), np.int32(-1)),
                weights=np.where(found, np.float32(0.25), np.float32(0)),
                runs=np.where(found, np.uint8(3), np.uint8(0)),
                blocks=np.array([[0, 2], [3, 5]][:index], np.int32).reshape(-1, 2),
            ),
            passage=Passage(
                start=2 * start,
                text="<ü" * n,
                starts=np.arange(2 * start, 2 * (start + n), 2, dtype=np.int32),
                lengths=np.full(n, 2, np.int32),
            ),
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
        for name, table in tables_of_tokens(segments, None, pytest.fail).items():
            job.write_table(f"{name}.parquet", table, GROUP_ROWS.get(name))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_the_order_in_which_results_came_does_not_matter(tmp_path: Path) -> None:
    expected = write_all(tmp_path / "0", [*DOCUMENTS, FAILED, *SEGMENTS])
    names = ("documents", "segments", "tokens", "readings", "passages")
    assert set(expected) == {f"{name}.parquet" for name in names}
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


def test_without_a_baseline_its_columns_are_null(tmp_path: Path) -> None:
    records = []
    for each in SEGMENTS:
        assert each.tokens is not None
        tokens = dataclasses.replace(each.tokens, logprobs_backbone=None)
        records.append(dataclasses.replace(each, nll_backbone=None, tokens=tokens))
    for folder, segments in (("both", SEGMENTS), ("alone", records)):
        write_all(tmp_path / folder, [*DOCUMENTS, FAILED, *segments])
    for table, name in (("documents", "nll_backbone"), ("segments", "nll_backbone"), ("tokens", "logprob_backbone")):
        both, alone = (pq.read_table(tmp_path / folder / f"{table}.parquet") for folder in ("both", "alone"))
        assert alone.schema == both.schema
        assert alone[name].null_count == len(alone)
        assert alone.drop_columns([name]).equals(both.drop_columns([name]))
    with Journal(tmp_path / "mixed.jsonl") as journal:
        for record in (DOCUMENTS[0], records[0], *SEGMENTS[1:3]):
            journal.add(record)
        with pytest.raises(AssertionError, match="scored 2 of 3 segments"):
            documents_table(journal, DOCUMENTS[:1])


def test_readings_and_passages_are_those_of_the_journal(tmp_path: Path) -> None:
    """Read what a process wrote that had opened the journal again."""
    with Journal(tmp_path / "journal.jsonl") as journal:
        for record in [*DOCUMENTS, *SEGMENTS]:
            journal.add(record)
    with Journal(tmp_path / "journal.jsonl") as journal:
        segments = [each for record in DOCUMENTS for each in journal.scored(record.document)]
    tables = tables_of_tokens(segments, None, pytest.fail)
    assert tables["readings"].schema.equals(READING_SCHEMA)
    assert tables["passages"].schema.equals(PASSAGE_SCHEMA)
    names = ["document", "segment", "position"]
    assert tables["readings"].select(names).equals(tables["tokens"].select(names))
    readings, passages = tables["readings"].to_pylist(), tables["passages"].to_pylist()
    assert [(row["document"], row["segment"], row["passage"]) for row in passages] == [
        (each.document, each.segment, "<ü" * each.num_tokens) for each in SEGMENTS
    ]
    assert (passages[2]["block_starts"], passages[2]["block_ends"]) == ([0, 3], [2, 5])
    assert [row["start"] for row in readings if row["document"] == "a"] == list(range(0, 22, 2))
    first, second = readings[0], readings[2]
    assert (first["places"], first["weights"], first["runs"]) == ([], [], [])
    assert (second["places"], second["weights"], second["runs"]) == ([0, 1], [0.25, 0.25], [3, 3])
    kept = SEGMENTS[0].tokens
    assert kept is not None
    assert kept.readings is not None
    assert second["copied"] == kept.readings.copied[2]
    assert second["logprob_uncopied"] == kept.readings.uncopied[2]
    assert second["copy_share"] == kept.readings.copy_share[2]


def test_a_journal_of_an_earlier_version_gives_no_readings_and_says_so(tmp_path: Path) -> None:
    record = SEGMENTS[0]
    assert record.tokens is not None
    values = encode(record)
    for name in ("readings", "passage"):
        del values["tokens"][name]
    earlier = decode(values)
    assert isinstance(earlier, SegmentRecord)
    told = list[str]()
    tables = tables_of_tokens([earlier, *SEGMENTS[1:]], None, told.append)
    assert set(tables) == {"tokens"}
    assert tables["tokens"].equals(tokens_table(SEGMENTS))
    assert "an earlier version" in told[0]


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
    assert tables_of_tokens([], None, pytest.fail)["readings"].schema.equals(READING_SCHEMA)
    assert tables_of_tokens([], None, pytest.fail)["passages"].schema.equals(PASSAGE_SCHEMA)
