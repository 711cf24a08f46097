# SPDX-License-Identifier: Apache-2.0
"""Output folder of a finished perplexity job, read by pieces: a page of tokens costs the row groups that hold it.

segments.parquet   whole, as the index: which rows of the other tables belong to a document
tokens.parquet     log-probabilities    readings.parquet   places read    passages.parquet   text
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError
from pipelines.view.tables import GroupedTable, read_summary, written_anew

TABLES = ("segments", "tokens", "readings", "passages")
SCORES = ("logprob_longmem", "logprob_backbone", "logprob_window")
READINGS = ("start", "length", "copy_share", "logprob_uncopied", "copied", "places", "weights", "runs")
PASSAGES = ("start", "passage", "block_starts", "block_ends")
KEPT_SEGMENTS = 64
"""Segments whose text stays cut into tokens: a page, and the passages that its tokens read."""
SCAN_ROWS = 2**18
"""Tokens that a search for extremes reads at once."""


@dataclass(frozen=True)
class ViewedDocument:
    """Document of the job, as intervals of rows."""

    name: str
    first_position: int
    """Position of the first predicted token; all later ones are predicted too."""
    first_row: int
    """Row of the first predicted token in tokens.parquet and readings.parquet."""
    num_tokens: int
    segments: range
    """Rows in segments.parquet and passages.parquet."""

    @property
    def end_position(self) -> int:
        """Position after the last token."""
        return self.first_position + self.num_tokens

    def row(self, position: int) -> int:
        """Return the row of a predicted token."""
        assert self.first_position <= position < self.end_position, f"{self.name}: {position} is not predicted"
        return self.first_row + position - self.first_position


@dataclass(frozen=True)
class SegmentText:
    """Text of one segment's targets, cut so that all parts join to the passage."""

    gaps: list[str]
    """Characters in front of each token that belong to no token."""
    tokens: list[str]
    """Characters of each token; empty for later bytes of one character."""
    rest: str
    """Characters after the last token."""


class RunFolder:
    """Tables of one finished job that kept its tokens. Thread-safe.

    Raises ConfigError for a folder without them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = read_summary(path)
        if "perplexity" not in self.summary or "model" not in self.summary:
            raise ConfigError(
                f"{path} is the folder of another kind of job; expected that of `longmem perplexity --tokens`"
            )
        for name in TABLES:
            if not (path / f"{name}.parquet").is_file():
                raise ConfigError(
                    f"{path} holds no {name}.parquet: the job kept no tokens, an earlier version of longmem ran it, or "
                    "the table was removed; score the documents again with `longmem perplexity … --tokens` and another "
                    f"--out, or {written_anew(path)}"
                )
        self._lock = RLock()
        try:
            self._segments = pq.read_table(path / "segments.parquet")
            self._tokens = GroupedTable(path / "tokens.parquet", SCORES)
            self._readings = GroupedTable(path / "readings.parquet", READINGS)
            self._passages = GroupedTable(path / "passages.parquet", PASSAGES)
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"cannot read the tables in {path}: {error}; {written_anew(path)}") from error
        if lacking := sorted({*READINGS, *PASSAGES} - {*self._readings.columns, *self._passages.columns}):
            raise ConfigError(
                f"the tables in {path} lack {', '.join(lacking)}: another version of longmem wrote them; score the "
                "documents again with `longmem perplexity … --tokens` and another --out"
            )
        self._num_tokens = self._segments["num_tokens"].to_numpy()
        self._first_rows = np.concatenate([[0], self._num_tokens.cumsum()])
        num_rows = int(self._first_rows[-1])
        counts = (self._tokens.num_rows, self._readings.num_rows, self._passages.num_rows)
        if counts != (num_rows, num_rows, len(self._segments)):
            raise ConfigError(f"the tables in {path} are not of one job; {written_anew(path)}")
        absent = self._segments["nll_backbone"].null_count
        if absent not in (0, len(self._segments)):
            raise ConfigError(
                f"the segments in {path} lack nll_backbone in {absent:,} of {len(self._segments):,} rows; expected "
                f"it in all rows or, for a job in one pass, in none; {written_anew(path)}"
            )
        self.has_baseline = not absent
        """False for a job in one pass: the backbone alone did not run, so no token has a gain."""
        self.documents = self._find_documents()
        self._text: Callable[[int], SegmentText] = lru_cache(KEPT_SEGMENTS)(self._cut)

    def _find_documents(self) -> list[ViewedDocument]:
        names, rows = self._segments["document"].to_pylist(), self._first_rows
        starts = self._segments["start_token"].to_pylist()
        borders = [index for index in range(len(names)) if index == 0 or names[index] != names[index - 1]]
        return [
            ViewedDocument(
                names[first], starts[first] + 1, int(rows[first]), int(rows[last] - rows[first]), range(first, last)
            )
            for first, last in zip(borders, [*borders[1:], len(names)], strict=True)
        ]

    def gains(self, first: int, last: int) -> np.ndarray:
        """Return log-probability with memory minus without, of rows `first` to `last` of a job with a baseline."""
        with self._lock:
            table = self._tokens.rows(first, last)
        assert not table["logprob_backbone"].null_count, f"{self.path}: tokens without a baseline have no gain"
        gains: np.ndarray = table["logprob_longmem"].to_numpy() - table["logprob_backbone"].to_numpy()
        return gains

    def means(self, document: ViewedDocument, bins: int) -> list[tuple[int, float]]:
        """Return first position and mean per token of at most `bins` equal numbers of segments of a document.

        The mean is that of the gain or, without a baseline, of the log-probability with memory.
        """
        part = self._segments.slice(document.segments.start, len(document.segments))
        starts, counts = part["start_token"].to_numpy(), part["num_tokens"].to_numpy()
        values = -part["nll_longmem"].to_numpy()
        if self.has_baseline:
            values = values + part["nll_backbone"].to_numpy()
        first = np.arange(0, len(part), -(-len(part) // bins))
        means = np.add.reduceat(values, first) / np.maximum(np.add.reduceat(counts, first), 1)
        return [(int(starts[at]) + 1, float(mean)) for at, mean in zip(first, means, strict=True)]

    def extremes(self, document: ViewedDocument, count: int, sign: int) -> list[int]:
        """Return positions of the `count` tokens of a document with the largest gain times `sign`, the largest first.

        Tokens without a gain of that sign are left out. The job must have a baseline.
        """
        found_rows, found_gains = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        end = document.first_row + document.num_tokens
        for first in range(document.first_row, end, SCAN_ROWS):
            gains = sign * self.gains(first, min(first + SCAN_ROWS, end))
            best = np.argpartition(-gains, min(count, len(gains) - 1))[:count]
            found_rows.append(first + best)
            found_gains.append(gains[best])
        rows, gains = np.concatenate(found_rows), np.concatenate(found_gains)
        # equal gains in the order of the text
        order = np.lexsort((rows, -gains))[:count]
        return [int(rows[at]) - document.first_row + document.first_position for at in order if gains[at] > 0]

    def tokens(self, document: ViewedDocument, first: int, last: int) -> dict[str, list[Any]]:
        """Return columns `SCORES` and `READINGS` of positions `first` to `last`, and `gaps` and `texts`."""
        if first >= last:
            return {name: [] for name in (*SCORES, *READINGS, "gaps", "texts")}
        rows = document.row(first), document.row(last - 1) + 1
        with self._lock:
            columns = {**self._tokens.rows(*rows).to_pydict(), **self._readings.rows(*rows).to_pydict()}
        gaps, texts = self.pieces(document, first, last)
        return {**columns, "gaps": gaps, "texts": texts}

    def text(self, document: ViewedDocument, first: int, last: int) -> str:
        """Return the text of the predicted tokens among positions `first` to `last`."""
        gaps, texts = self.pieces(document, first, last)
        return "".join(part for pair in zip(gaps, texts, strict=True) for part in pair)

    def rest(self, document: ViewedDocument) -> str:
        """Return the characters after the last token of a document."""
        with self._lock:
            return self._text(document.segments[-1]).rest

    def segment_of(self, document: ViewedDocument, position: int) -> int:
        """Return the index of the segment that predicts a position."""
        size = int(self._num_tokens[document.segments.start])
        return (position - document.first_position) // size

    def blocks(self, document: ViewedDocument, segment: int) -> list[tuple[int, int]]:
        """Return the intervals of positions that a segment of the document read at every layer."""
        row = document.segments[segment]
        with self._lock:
            [found] = self._passages.rows(row, row + 1).to_pylist()
        return list(zip(found["block_starts"], found["block_ends"], strict=True))

    def pieces(self, document: ViewedDocument, first: int, last: int) -> tuple[list[str], list[str]]:
        """Return gaps and texts (`SegmentText`) of the predicted tokens among positions `first` to `last`."""
        first, last = max(first, document.first_position), min(last, document.end_position)
        gaps, texts = list[str](), list[str]()
        while first < last:
            segment = self.segment_of(document, first)
            row = document.segments[segment]
            begin = int(self._segments["start_token"][row].as_py()) + 1
            with self._lock:
                cut = self._text(row)
            end = min(last, begin + len(cut.tokens))
            gaps += cut.gaps[first - begin : end - begin]
            texts += cut.tokens[first - begin : end - begin]
            first = end
        return gaps, texts

    def _cut(self, row: int) -> SegmentText:
        """Return the text of the segment in a row of segments.parquet."""
        [passage] = self._passages.rows(row, row + 1).to_pylist()
        spans = self._readings.rows(int(self._first_rows[row]), int(self._first_rows[row + 1]))
        whole, begin, done = passage["passage"], passage["start"], passage["start"]
        gaps, tokens = list[str](), list[str]()
        for start, length in zip(spans["start"].to_pylist(), spans["length"].to_pylist(), strict=True):
            from_, to = max(start, done), max(start + length, done)
            gaps.append(whole[done - begin : from_ - begin])
            tokens.append(whole[from_ - begin : to - begin])
            done = to
        return SegmentText(gaps, tokens, whole[done - begin :])
