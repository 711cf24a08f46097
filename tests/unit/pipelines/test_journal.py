# SPDX-License-Identifier: Apache-2.0
"""The journal: no added record is lost, a torn end is cut off, damage is never read as a result."""

import dataclasses
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from longmem.errors import OutputError
from pipelines.perplexity.journal import Journal
from pipelines.perplexity.records import DocumentRecord, Record, SegmentRecord, TokenScores

NASTY = 'q\u2028 \x1b[31m\r\n\t"\\ é 🐳'


def segment(index: int, document: str = "moby-dick", nll: float = 1.5, num_kept: int | None = None) -> SegmentRecord:
    random = np.random.default_rng(index)
    tokens = None
    if num_kept is not None:
        tokens = TokenScores(
            targets=random.integers(0, 2**31 - 1, num_kept).astype(np.int32),
            logprobs_longmem=-random.random(num_kept).astype(np.float32),
            logprobs_backbone=-random.random(num_kept).astype(np.float32),
        )
    return SegmentRecord(
        document=document,
        segment=index,
        start_token=32 * index,
        num_tokens=num_kept or 32,
        nll_longmem=nll,
        nll_backbone=0.1 + 0.2,
        memory_tokens=96,
        gate_mean=0.62,
        copy_mean=0.07,
        distance_mean=1 / 3,
        empty_slots=3,
        distance_histogram=[0, 5, 7],
        chunks_digest="00ff",
        tokens=tokens,
    )


STARTED = DocumentRecord(
    document="moby-dick",
    order=0,
    source="/books/moby-dick.txt",
    status="started",
    num_tokens=96,
    num_unscored_tokens=0,
    num_segments=3,
    num_words=17,
    num_bytes=96,
    text_digest="00" * 16,
)
SCORED = dataclasses.replace(STARTED, status="scored")
UNREAD = DocumentRecord(document=NASTY, order=1, source=NASTY, status="failed", error=NASTY, num_segments=1)
RECORDS: list[Record] = [
    STARTED,
    segment(1, num_kept=5),
    segment(0),
    segment(2, num_kept=0),
    UNREAD,
    SCORED,
    segment(0, document=NASTY, nll=1e-300),
]


def in_one_pass(record: SegmentRecord) -> SegmentRecord:
    """Return the record as it is where the backbone alone did not run."""
    tokens = record.tokens and dataclasses.replace(record.tokens, logprobs_backbone=None)
    return dataclasses.replace(record, nll_backbone=None, tokens=tokens)


def write(path: Path, records: list[Record]) -> bytes:
    with Journal(path) as journal:
        for record in records:
            journal.add(record)
    return path.read_bytes()


def content(journal: Journal) -> tuple[dict[str, DocumentRecord], dict[tuple[str, int], object]]:
    """Return comparable content: arrays as bytes with their dtype."""
    segments = [record for name in journal.documents for record in journal.scored(name)]
    return journal.documents, {(record.document, record.segment): plain(record) for record in segments}


def plain(record: SegmentRecord) -> object:
    values = vars(record).copy()
    if record.tokens is not None:
        arrays = {name: each for name, each in vars(record.tokens).items() if each is not None}
        values["tokens"] = {name: (str(each.dtype), each.tobytes()) for name, each in arrays.items()}
    return values


def read(path: Path) -> tuple[dict[str, DocumentRecord], dict[tuple[str, int], object]]:
    with Journal(path) as journal:
        return content(journal)


def test_every_kind_of_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        assert content(journal) == ({}, {})
        for record in RECORDS:
            journal.add(record)
        documents, segments = content(journal)
    assert documents == {"moby-dick": SCORED, NASTY: UNREAD}
    assert set(segments) == {("moby-dick", 0), ("moby-dick", 1), ("moby-dick", 2), (NASTY, 0)}
    assert segments["moby-dick", 1] == plain(segment(1, num_kept=5))
    assert read(path) == (documents, segments)
    assert len(path.read_bytes().splitlines()) == len(RECORDS), "one record is one line, whatever its texts hold"


@pytest.mark.parametrize("num_kept", [None, 0, 5])
def test_a_record_without_a_baseline_comes_back_without_it(tmp_path: Path, num_kept: int | None) -> None:
    path = tmp_path / "journal.jsonl"
    record = in_one_pass(segment(0, num_kept=num_kept))
    write(path, [STARTED, record])
    with Journal(path) as journal:
        [found] = journal.scored("moby-dick")
    assert plain(found) == plain(record)
    assert found.nll_backbone is None
    assert found.tokens is None or found.tokens.logprobs_backbone is None


def test_a_record_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    """Check durability against `kill -9`, which closes no file."""
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number, record in enumerate(RECORDS, start=1):
            journal.add(record)
            assert path.read_bytes().count(b"\n") == number
            assert path.read_bytes().endswith(b"\n")


def test_scored_gives_the_segments_of_a_document_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add(STARTED)
        for index in (2, 0):
            journal.add(segment(index))
        assert [each.segment for each in journal.scored("moby-dick")] == [0, 2]
        journal.add(UNREAD)
        assert journal.scored(NASTY) == []


def test_a_segment_that_was_scored_again_counts_once_as_first_scored(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for record in (STARTED, segment(0, nll=1.0), segment(0, nll=2.0)):
            journal.add(record)
        assert [each.nll_longmem for each in journal.scored("moby-dick")] == [1.0]
    with Journal(path) as journal:
        assert [each.nll_longmem for each in journal.scored("moby-dick")] == [1.0]


def test_a_torn_end_at_any_byte_loses_only_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path, RECORDS)
    kept = write(tmp_path / "kept.jsonl", RECORDS[:-1])
    expected_kept, expected_whole = read(tmp_path / "kept.jsonl"), read(path)
    assert whole.startswith(kept)
    for cut in range(len(kept), len(whole)):
        path.write_bytes(whole[:cut])
        assert read(path) == expected_kept, f"cut at byte {cut}"
        assert path.read_bytes() == kept, "the torn line is gone"
        if cut % 20 == 0 or cut > len(whole) - 3:
            assert write(path, RECORDS[-1:]) == whole
            assert read(path) == expected_whole


def test_a_torn_first_record_leaves_an_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path, RECORDS[:1])
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read(path) == ({}, {})
        assert write(path, RECORDS[:1]) == whole


@pytest.mark.parametrize("tail", [b"\0" * 512, b"\xff\xfe\r\r", b"half a line"])
def test_an_end_of_anything_else_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    """Check tails that a file system may leave after a crash. A tail that looks like several lines is damage, see
    below."""
    path = tmp_path / "journal.jsonl"
    whole = write(path, RECORDS)
    if tail.count(b"\r"):
        tail = tail.replace(b"\r", b"")
    path.write_bytes(whole + tail)
    read(path)
    assert path.read_bytes() == whole


def test_a_changed_byte_before_the_last_line_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path, RECORDS)
    lines = whole.splitlines(keepends=True)
    position = 0
    for number, line in enumerate(lines[:-1], start=1):
        # in the checksum, in the JSON, and in the newline (which joins the last two lines)
        ends = [] if number == len(lines) - 1 else [len(line) - 1]
        for place in (0, 20, len(line) // 2, *ends):
            damaged = bytearray(whole)
            damaged[position + place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(OutputError, match=rf"journal\.jsonl line {number} is damaged"):
                Journal(path)
            assert path.read_bytes() == damaged, "damage is left for a person to look at"
        position += len(line)


def test_a_changed_byte_in_the_last_line_loses_only_that_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path, RECORDS)
    kept = write(tmp_path / "kept.jsonl", RECORDS[:-1])
    for place in (0, 20, 60):
        damaged = bytearray(whole)
        damaged[len(kept) + place] ^= 1
        path.write_bytes(damaged)
        assert read(path) == read(tmp_path / "kept.jsonl")
        assert path.read_bytes() == kept


def test_a_missing_line_end_in_the_middle_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path, RECORDS).splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].rstrip(b"\n"), *lines[2:]]))
    with pytest.raises(OutputError, match="line 2 is damaged"):
        Journal(path)


@pytest.mark.parametrize(
    "text",
    [b'{"kind": "chapter"}', b"{}", b"[]", b"no JSON", b'{"kind": "document"}', b'{"kind": "segment", "tokens": null}'],
)
def test_a_record_of_another_version_is_refused(tmp_path: Path, text: bytes) -> None:
    """Check a valid checksum of another version: it is no damage and must not be cut off as a torn line."""
    path = tmp_path / "journal.jsonl"
    line = f"{xxhash.xxh3_64_hexdigest(text)} ".encode() + text + b"\n"
    whole = write(path, RECORDS[:2]) + line
    path.write_bytes(whole)
    with pytest.raises(OutputError, match="line 3 was written by another version of longmem"):
        Journal(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_never_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.add(segment(0, nll=value))
    assert path.read_bytes() == b""


def test_a_journal_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot open .*journal\.jsonl"):
        Journal(tmp_path / "journal.jsonl")


def test_a_disk_that_takes_no_more_is_an_output_error_and_nothing_else(tmp_path: Path) -> None:
    """Check that closing does not mask the error that names the cause, though it cannot write either."""
    path = tmp_path / "journal.jsonl"

    def use() -> None:
        with Journal(path) as journal:
            journal.add(STARTED)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
            try:
                journal.add(segment(0))
            finally:
                # outside the block, so that closing hits the same limit
                cleanup.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))

    cleanup: list[Callable[[], None]] = []
    try:
        with pytest.raises(OutputError, match=r"cannot write .*journal\.jsonl: File too large; .* --resume"):
            use()
    finally:
        for undo in cleanup:
            undo()
    assert write(path, [segment(0)]) == write(tmp_path / "other.jsonl", [STARTED, segment(0)])
