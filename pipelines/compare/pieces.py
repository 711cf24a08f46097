# SPDX-License-Identifier: Apache-2.0
"""Text of several perplexity runs, cut where all of them have a border, so that their nats can be paired.

    run 1, segments of 512    ├────┼────┼────┼────┼────┼──┤
    run 2, segments of 1,024  ├─────────┼─────────┼───────┤
    pieces                    ├─────────┼─────────┼───────┤

The end of a document is a border of every run, so a document is at least one piece. Runs with different tokenizers
have no other border in common, and no token either: their pieces are documents, counted in UTF-8 bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from longmem.errors import ConfigError, OutputError
from pipelines.command.console import printable
from pipelines.compare.runs import FinishedRun
from pipelines.job.format import limits_text
from pipelines.job.journal import JOURNAL, read_lines


@dataclass(frozen=True)
class Pieces:
    """Pieces of the documents that all runs have scored, in the order of the first run."""

    unit: str
    """Unit of `count`: tokens, or bytes where tokenizers differ."""
    documents: list[str]
    document: Int64[np.ndarray, " pieces"]
    """Index of each piece's document."""
    start: Int64[np.ndarray, " pieces"]
    """Position of the token before the first predicted one; 0 where units are bytes."""
    count: Int64[np.ndarray, " pieces"]
    """Units of each piece."""
    longmem: Float64[np.ndarray, "runs pieces"]
    """Nats of each run with memory."""
    backbone: list[Float64[np.ndarray, " pieces"] | None]
    """Nats of each run without memory; None for a run in one pass, whose backbone did not run alone."""
    are_segments: bool
    """True if every piece is one segment of every run."""
    notes: list[str]
    """Sentences on documents that were left out, and on the pairing."""

    @property
    def ends(self) -> Int64[np.ndarray, " pieces"]:
        """Position of the last predicted token of each piece."""
        ends: np.ndarray = self.start + self.count
        return ends


@dataclass(frozen=True)
class _ScoredSegments:
    """Scored segments of one document in one run, in order, without those that predict nothing."""

    ends: Int64[np.ndarray, " segments"]
    longmem: Float64[np.ndarray, " segments"]
    backbone: Float64[np.ndarray, " segments"] | None


def common_pieces(runs: Sequence[FinishedRun]) -> Pieces:
    """Return the pieces of runs that have scored the same texts.

    Raises ConfigError for a document whose text differs, or without a common document; OutputError for damaged files.
    """
    scored = [_text_digests(run) for run in runs]
    names = [name for name in scored[0] if all(name in each for each in scored)]
    if not names:
        listed = "; ".join(f"{run.name} has {_listed(list(each))}" for run, each in zip(runs, scored, strict=True))
        raise ConfigError(f"no document was scored in all runs: {listed}; compare runs of the same texts")
    for name in names:
        for run, each in zip(runs[1:], scored[1:], strict=True):
            if each[name] != scored[0][name]:
                _check_limits(runs[0], run)
                raise ConfigError(
                    f"document {printable(name)} is another text in {run.name} than in {runs[0].name}: their digests "
                    f"are {each[name]} and {scored[0][name]}; compare runs of the same texts"
                )
    more = [[name for name in each if name not in names] for each in scored]
    notes = [
        f"{run.name} also scored {_listed(left)}, unlike another run: left out."
        for run, left in zip(runs, more, strict=True)
        if left
    ]
    if len({run.tokenizer for run in runs}) > 1:
        return _by_bytes(runs, names, notes)
    return _by_tokens(runs, names, notes)


def _check_limits(first: FinishedRun, run: FinishedRun) -> None:
    """Raise ConfigError where two runs have scored other lengths of the same documents."""
    limits = [each.identity.get("limit_tokens") for each in (first, run)]
    if limits[0] != limits[1]:
        ours, theirs = (limits_text({"tokens": limit}) or "all tokens of each document" for limit in limits)
        raise ConfigError(
            f"{first.name} has scored {ours}, and {run.name} {theirs}; compare runs with the same --limit-tokens"
        )


def _by_tokens(runs: Sequence[FinishedRun], names: list[str], notes: list[str]) -> Pieces:
    segments = [_segments(run) for run in runs]
    kept = [name for name in names if all(name in each for each in segments)]
    if not kept:
        raise ConfigError("no token was scored in all runs: their documents are empty; compare runs of longer texts")
    starts, counts = [], []
    longmem: list[np.ndarray] = []
    backbone: list[list[np.ndarray | None]] = [[] for _ in runs]
    are_segments = True
    for name in kept:
        mine = [each[name] for each in segments]
        ends = reduce(np.intersect1d, [each.ends for each in mine])
        if any(each.ends[-1] != mine[0].ends[-1] for each in mine):
            raise ConfigError(
                f"document {printable(name)} has {', '.join(f'{each.ends[-1]:,}' for each in mine)} tokens in the "
                "runs, though text and tokenizer are equal: the special tokens are read differently "
                "(--special-tokens); compare runs with the same rule"
            )
        are_segments &= all(len(each.ends) == len(ends) for each in mine)
        starts.append(np.concatenate([[0], ends[:-1]]))
        counts.append(ends - starts[-1])
        longmem.append(np.array([_sums(ends, each.ends, each.longmem) for each in mine]))
        for parts, each in zip(backbone, mine, strict=True):
            parts.append(None if each.backbone is None else _sums(ends, each.ends, each.backbone))
    if not are_segments:
        notes = [*notes, "Segments differ in length: pieces between borders that all runs share are paired."]
    return Pieces(
        unit="tokens",
        documents=kept,
        document=np.repeat(np.arange(len(kept)), [len(each) for each in starts]),
        start=np.concatenate(starts),
        count=np.concatenate(counts),
        longmem=np.concatenate(longmem, axis=1),
        backbone=[_joined(parts) for parts in backbone],
        are_segments=are_segments,
        notes=notes,
    )


def _by_bytes(runs: Sequence[FinishedRun], names: list[str], notes: list[str]) -> Pieces:
    columns = ("document", "num_bytes", "num_unscored_tokens", "nll_longmem", "nll_backbone")
    rows = [{row["document"]: row for row in run.table("documents", columns).to_pylist()} for run in runs]
    kept = [name for name in names if rows[0][name]["num_bytes"]]
    unscored = [sum(each[name]["num_unscored_tokens"] or 0 for name in kept) for each in rows]
    notes = [*notes, "Tokenizers differ: bits per byte are compared, and documents are paired."]
    if any(unscored):
        said = ", ".join(f"{count:,} in {run.name}" for count, run in zip(unscored, runs, strict=True) if count)
        notes.append(f"First tokens that have no context are not counted: {said}.")
    backbone = [[each[name]["nll_backbone"] for name in kept] for each in rows]
    return Pieces(
        unit="bytes",
        documents=kept,
        document=np.arange(len(kept)),
        start=np.zeros(len(kept), np.int64),
        count=np.array([rows[0][name]["num_bytes"] for name in kept]),
        longmem=np.array([[each[name]["nll_longmem"] for name in kept] for each in rows]),
        backbone=[_baseline(run, pa.array(nats, pa.float64())) for run, nats in zip(runs, backbone, strict=True)],
        are_segments=False,
        notes=notes,
    )


def _joined(parts: list[np.ndarray | None]) -> Float64[np.ndarray, " pieces"] | None:
    known = [part for part in parts if part is not None]
    assert len(known) in (0, len(parts)), f"{len(known)} of {len(parts)} documents of one run have a baseline"
    return np.concatenate(known) if known else None


def _baseline(run: FinishedRun, nats: pa.Array | pa.ChunkedArray) -> np.ndarray | None:
    """Return the nats of the backbone alone; None if it did not run. Raises OutputError for a part of them."""
    if nats.null_count == 0:
        return np.asarray(nats.to_numpy())
    if nats.null_count < len(nats):
        raise OutputError(
            f"{run.name}: the tables lack nll_backbone in {nats.null_count:,} of {len(nats):,} rows; a run has it in "
            "all rows or, in one pass, in none: remove summary.json and resume the job"
        )
    return None


def _sums(
    borders: Int64[np.ndarray, " pieces"],
    ends: Int64[np.ndarray, " segments"],
    nats: Float64[np.ndarray, " segments"],
) -> Float64[np.ndarray, " pieces"]:
    """Return the nats of all segments up to each border and after the one before it."""
    sums: np.ndarray = np.bincount(np.searchsorted(borders, ends), weights=nats, minlength=len(borders))
    return sums


def _segments(run: FinishedRun) -> dict[str, _ScoredSegments]:
    """Return the segments of each document that has a predicted token."""
    columns = ("document", "segment", "start_token", "num_tokens", "nll_longmem", "nll_backbone")
    table = run.table("segments", columns)
    table = table.filter(pa.array(table["num_tokens"].to_numpy() > 0)).sort_by(
        [("document", "ascending"), ("segment", "ascending")]
    )
    names = table["document"].to_pylist()
    ends = table["start_token"].to_numpy() + table["num_tokens"].to_numpy()
    longmem, backbone = table["nll_longmem"].to_numpy(), _baseline(run, table["nll_backbone"])
    found = {}
    first = 0
    for index in range(1, len(names) + 1):
        if index == len(names) or names[index] != names[first]:
            part = slice(first, index)
            alone = None if backbone is None else backbone[part]
            found[names[first]] = _ScoredSegments(ends[part], longmem[part], alone)
            first = index
    return found


def _text_digests(run: FinishedRun) -> dict[str, str]:
    """Return the digest of the text of every scored document, in the order in which they were begun."""
    records = {}
    for line in read_lines(run.folder / JOURNAL):
        if line.startswith(b'{"kind":"document"'):
            record = json.loads(line)
            records[record["document"]] = record
    return {name: record["text_digest"] for name, record in records.items() if record["status"] == "scored"}


def _listed(names: list[str], most: int = 3) -> str:
    shown = ", ".join(map(printable, names[:most])) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
