# SPDX-License-Identifier: Apache-2.0
"""Comparison of perplexity runs: all text, each document, positions in a document, and frequencies of tokens.

Every figure is one of `longmem.scoring.metrics`, with a run in the place of LongMem and the baseline in the place of
its backbone: perplexities of both and their change, on the same resamples of pieces.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from longmem.errors import OutputError
from longmem.scoring.metrics import NO_FIGURE, Interval, SegmentNats, compute_perplexities
from pipelines.compare.pieces import Pieces, common_pieces
from pipelines.compare.runs import FinishedRun
from pipelines.perplexity.spread import DocumentSpread, change_spread, perplexity_spread

FREQUENCIES = (1, 2, 10, 100, 1000)
"""Least occurrences of a token, in all compared texts together, of each class of frequency."""

Row = dict[str, Any]


def compare_perplexity(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return all comparisons to the first run as JSON values.

    A `figure` is a perplexity per token, and its `change` is relative. Where tokenizers differ it is bits per byte, and
    the change is a difference. Raises ConfigError where the runs have no common text, OutputError for damaged files.
    """
    pieces = common_pieces(runs)
    in_one_pass = [run.name for run, nats in zip(runs, pieces.backbone, strict=True) if nats is None]
    frequencies, reason = _by_frequency(runs, pieces)
    return {
        "unit": "perplexity" if pieces.unit == "tokens" else "bits per byte",
        "counted": pieces.unit,
        "count": int(pieces.count.sum()),
        "paired": _paired(pieces),
        "pieces": len(pieces.count),
        "whole": _whole(pieces),
        "documents": _by_document(pieces),
        "positions": _by_position(pieces),
        "frequencies": frequencies,
        "no_frequencies": reason,
        "notes": [*pieces.notes, *(f"{name}: the backbone alone did not run in one pass." for name in in_one_pass)],
        "has_baseline": len(in_one_pass) < len(runs),
    }


def _paired(pieces: Pieces) -> str:
    if pieces.are_segments:
        return "segments"
    return "documents" if len(pieces.count) == len(pieces.documents) else "pieces"


def _figures(pieces: Pieces, nats: Float64[np.ndarray, "runs parts"], count: Int64[np.ndarray, " parts"]) -> list[Row]:
    """Return figure and change of each run over parts of the text; the change of the baseline is None."""
    rows = []
    for index, ours in enumerate(nats):
        paired = zip(ours.tolist(), nats[0].tolist(), count.tolist(), strict=True)
        found = compute_perplexities([SegmentNats(*values) for values in paired], 0, 0)
        change = asdict(_in_unit(pieces, found.change, math.log1p)) if index else None
        rows.append({"figure": asdict(_in_unit(pieces, found.token.longmem, math.log)), "change": change})
    return rows


def _figure_alone(pieces: Pieces, nats: Float64[np.ndarray, " pieces"]) -> Row:
    return dict(_figures(pieces, nats[np.newaxis], pieces.count)[0]["figure"])


def _in_unit(pieces: Pieces, interval: Interval, log: Callable[[float], float]) -> Interval:
    """Return a perplexity per byte, or its change, in bits; other figures as they are."""
    if pieces.unit == "tokens":
        return interval
    return Interval(*(None if part is None else log(part) / math.log(2) for part in vars(interval).values()))


def _whole(pieces: Pieces) -> list[Row]:
    """Return the figures of each run over all text, and their spread over documents.

    `without_memory` holds None for a run in one pass.
    """
    with_memory = _figures(pieces, pieces.longmem, pieces.count)
    count = _per_document(pieces, pieces.count).astype(np.int64).tolist()
    nats = [_per_document(pieces, ours) for ours in pieces.longmem]
    rows = []
    for index, (ours, backbone) in enumerate(zip(with_memory, pieces.backbone, strict=True)):
        spread = perplexity_spread(pieces.documents, nats[index].tolist(), count)
        difference = nats[index] - nats[0]
        change = change_spread(pieces.documents, difference.tolist(), count) if index else DocumentSpread(None, None)
        rows.append(
            {
                **ours,
                "without_memory": asdict(NO_FIGURE) if backbone is None else _figure_alone(pieces, backbone),
                **_spread_row(pieces, spread, "", math.log),
                **_spread_row(pieces, change, "_change", math.log1p),
                "lower_documents": int(np.sum(difference < 0)) if index else None,
                "equal": bool(np.array_equal(pieces.longmem[index], pieces.longmem[0])),
            }
        )
    return rows


def _spread_row(pieces: Pieces, spread: DocumentSpread, suffix: str, log: Callable[[float], float]) -> Row:
    def shown(figure: float | None) -> float | None:
        return figure if figure is None or pieces.unit == "tokens" else log(figure) / math.log(2)

    dominant = spread.dominant
    return {
        f"median{suffix}": shown(spread.median),
        f"dominant{suffix}": dominant and {"document": dominant.document, "without": shown(dominant.without)},
    }


def _per_document(pieces: Pieces, values: np.ndarray) -> Float64[np.ndarray, " documents"]:
    sums: np.ndarray = np.bincount(pieces.document, weights=values, minlength=len(pieces.documents))
    return sums


def _by_document(pieces: Pieces) -> list[Row]:
    rows = []
    for index, name in enumerate(pieces.documents):
        mine = pieces.document == index
        runs = _figures(pieces, pieces.longmem[:, mine], pieces.count[mine])
        rows.append({"document": name, "count": int(pieces.count[mine].sum()), "runs": runs})
    return rows


def _by_position(pieces: Pieces) -> list[Row]:
    """Return the figures by position of the predicted token, which counts from 1, in classes that double.

    The first class ends where the longest piece would. There is none where every document is one piece.
    """
    if _paired(pieces) == "documents":
        return []
    borders = [0, int(pieces.count.max())]
    while borders[-1] <= pieces.start.max():
        borders.append(2 * borders[-1])
    rows = []
    for first, end in pairwise(borders):
        mine = (pieces.start >= first) & (pieces.start < end)
        if mine.any():
            runs = _figures(pieces, pieces.longmem[:, mine], pieces.count[mine])
            rows.append({"first": first + 1, "last": end, "count": int(pieces.count[mine].sum()), "runs": runs})
    return rows


def _by_frequency(runs: Sequence[FinishedRun], pieces: Pieces) -> tuple[list[Row], str | None]:
    """Return the figures by frequency of the predicted token, and why some or all are missing.

    A run without tokens.parquet has None in the place of its figures.
    """
    if pieces.unit != "tokens":
        return [], "tokenizers differ, so there are no tokens in common"
    absent = [run.name for run in runs if not run.has_table("tokens")]
    reason = f"--tokens was not given in {', '.join(absent)}" if absent else None
    if runs[0].name in absent or len(absent) == len(runs) - 1:
        return [], reason
    read = {run.name: _tokens(run, pieces) for run in runs if run.name not in absent}
    tokens, piece, _ = read[runs[0].name]
    for name, (theirs, _, _) in read.items():
        if not np.array_equal(theirs, tokens):
            raise OutputError(
                f"{name}: tokens.parquet and segments.parquet hold other tokens; remove summary.json and resume the job"
            )
    occurrences = np.bincount(tokens)
    classes = np.searchsorted(FREQUENCIES, occurrences[tokens], side="right") - 1
    rows = []
    for index, least in enumerate(FREQUENCIES):
        mine = classes == index
        if not mine.any():
            continue
        size = len(pieces.count)
        nats = {
            name: np.bincount(piece[mine], weights=theirs[mine], minlength=size)
            for name, (_, _, theirs) in read.items()
        }
        figures = dict(
            zip(
                nats,
                _figures(pieces, np.array([*nats.values()]), np.bincount(piece[mine], minlength=size)),
                strict=True,
            )
        )
        rows.append(
            {
                "least": least,
                "most": FREQUENCIES[index + 1] - 1 if index + 1 < len(FREQUENCIES) else None,
                "count": int(mine.sum()),
                "different": len(np.unique(tokens[mine])),
                "runs": [figures.get(run.name) for run in runs],
            }
        )
    return rows, reason


def _tokens(
    run: FinishedRun, pieces: Pieces
) -> tuple[Int64[np.ndarray, " tokens"], Int64[np.ndarray, " tokens"], Float64[np.ndarray, " tokens"]]:
    """Return token, index of the piece, and nats of every predicted token of the compared documents, in order."""
    table = run.table("tokens", ("document", "position", "token", "logprob_longmem"), ["document"])
    names = table["document"].combine_chunks()
    numbers = {name: index for index, name in enumerate(pieces.documents)}
    of_name = np.array([numbers.get(name, -1) for name in names.dictionary.to_pylist()], np.int64)
    document = of_name[names.indices.to_numpy()]
    position, token = table["position"].to_numpy(), table["token"].to_numpy()
    kept = np.flatnonzero(document >= 0)
    kept = kept[np.lexsort((position[kept], document[kept]))]
    # pieces are in the order of documents and positions too: a number that grows along both finds them
    longest = int(pieces.ends.max()) + 1
    borders = pieces.document * longest + pieces.ends
    piece = np.searchsorted(borders, document[kept] * longest + position[kept])
    nats = -table["logprob_longmem"].to_numpy()[kept].astype(np.float64)
    return token[kept].astype(np.int64), piece, nats
