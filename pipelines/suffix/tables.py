# SPDX-License-Identifier: Apache-2.0
"""Arrow tables of examples: items.parquet; with --tokens also readings.parquet and texts.parquet."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from longmem.backbone.tokenizer import Tokenizer
from pipelines.suffix.data import SuffixExample
from pipelines.suffix.figures import WAYS, is_correct
from pipelines.suffix.scoring import CandidateReadings, SuffixLengths, SuffixScore

ITEM_SCHEMA = pa.schema(
    [
        ("example", pa.string()),
        ("work", pa.string()),
        ("label", pa.int64()),
        ("context_tokens", pa.int64()),
        ("local_tokens", pa.int64()),
        ("memory_tokens", pa.int64()),
        ("suffix_tokens", pa.list_(pa.int64())),
        *((f"nll_{way}", pa.list_(pa.float64())) for way in WAYS),
        ("nll_alone", pa.list_(pa.float64())),
        *((f"correct_{way}", pa.bool_()) for way in WAYS),
        *((f"correct_information_{way}", pa.bool_()) for way in WAYS),
    ]
)
"""Columns of items.parquet: one row per example and context length; lists have one entry per candidate."""

READING_SCHEMA = pa.schema(
    [
        ("example", pa.string()),
        ("context_tokens", pa.int64()),
        ("candidate", pa.int64()),
        *((f"logprobs_{way}", pa.list_(pa.float32())) for way in WAYS),
        *((name, pa.list_(pa.float32())) for name in ("copy_share", "uncopied", "copied")),
        ("places", pa.list_(pa.list_(pa.int32()))),
        ("weights", pa.list_(pa.list_(pa.float32()))),
        ("runs", pa.list_(pa.list_(pa.uint8()))),
        ("block_starts", pa.list_(pa.int32())),
        ("block_ends", pa.list_(pa.int32())),
    ]
)
"""Columns of readings.parquet: one row per example, context length and candidate; other lists have one entry per scored
token. They are explained at `longmem.types.TokenReadings`. Places are positions in the tokens of the context."""

TEXT_SCHEMA = pa.schema(
    [
        ("example", pa.string()),
        ("kind", pa.string()),
        ("number", pa.int64()),
        ("passage", pa.string()),
        ("first", pa.int64()),
        ("tokens", pa.list_(pa.string())),
    ]
)
"""Columns of texts.parquet: one row per context and candidate (`kind`), with the texts of its tokens, which join to its
text. A context has those from position `first` on that the longest context reads, a candidate those that are scored.
`passage` is the text of the tokens, of a context only its end."""

PASSAGE_CHARACTERS = 600
"""Characters of the end of a context in `passage`."""

GROUP_ROWS = {"readings": 64, "texts": 64}
"""Rows of a row group, as many as are read at once: about 500 kB."""


def items_table(scores: Sequence[SuffixScore]) -> pa.Table:
    """Return the rows in the order of the file, by ascending context length."""
    columns = {"probability": "correct", "information": "correct_information"}
    rows = [
        {
            **vars(score),
            **{f"{column}_{way}": is_correct(score, way, by) for by, column in columns.items() for way in WAYS},
        }
        for score in scores
    ]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def readings_table(scores: Sequence[SuffixScore]) -> pa.Table:
    """Return the content of readings.parquet; every score has kept its readings."""
    return pa.Table.from_pylist([row for score in scores for row in _reading_rows(score)], schema=READING_SCHEMA)


def texts_table(examples: Sequence[SuffixExample], tokenizer: Tokenizer, lengths: SuffixLengths) -> pa.Table:
    """Return the content of texts.parquet."""
    rows = [row for example in examples for row in _text_rows(example, tokenizer, lengths)]
    return pa.Table.from_pylist(rows, schema=TEXT_SCHEMA)


def _reading_rows(score: SuffixScore) -> Iterator[dict[str, Any]]:
    assert score.readings is not None, f"{score.example}: readings were not kept"
    for candidate, kept in enumerate(score.readings):
        yield {
            "example": score.example,
            "context_tokens": score.context_tokens,
            "candidate": candidate,
            **_columns_of(kept),
        }


def _columns_of(kept: CandidateReadings) -> dict[str, Any]:
    read = kept.readings

    def lists(part: np.ndarray) -> list[list[float]]:
        return [row[found].tolist() for row, found in zip(part, read.places >= 0, strict=True)]

    return {
        **{f"logprobs_{way}": getattr(kept, f"logprobs_{way}").tolist() for way in WAYS},
        **{name: getattr(read, name).tolist() for name in ("copy_share", "uncopied", "copied")},
        **{name: lists(getattr(read, name)) for name in ("places", "weights", "runs")},
        "block_starts": read.blocks[:, 0].tolist(),
        "block_ends": read.blocks[:, 1].tolist(),
    }


def _text_rows(example: SuffixExample, tokenizer: Tokenizer, lengths: SuffixLengths) -> Iterator[dict[str, Any]]:
    context = tokenizer.cut_sequence(example.context)
    first = max(0, len(context) - max(lengths.context_tokens) - 1)
    texts = [("context", 0, first, context[first:])]
    for number, text in enumerate(example.candidates):
        texts.append(("candidate", number, 0, tokenizer.cut(text)[: lengths.suffix_tokens]))
    for kind, number, begin, tokens in texts:
        passage = "".join(tokens)
        yield {
            "example": example.id,
            "kind": kind,
            "number": number,
            "passage": passage[-PASSAGE_CHARACTERS:] if kind == "context" else passage,
            "first": begin,
            "tokens": tokens,
        }
