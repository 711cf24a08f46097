# SPDX-License-Identifier: Apache-2.0
"""Records of documents and segments: lines of the journal and rows of the parquet files."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from longmem.scoring.evaluation_window import EvaluationWindow
from longmem.text.segments import Passage
from longmem.types import Document, Segment, SegmentScore, TokenReadings
from pipelines.job.journal import array_of, packed, text_of, unpacked

Status = Literal["started", "scored", "failed"]


@dataclass(frozen=True, kw_only=True)
class DocumentRecord:
    """State of one document; the last record of an id is valid."""

    document: str
    order: int
    """Position among the job's inputs."""
    source: str
    status: Status
    error: str | None = None
    num_tokens: int | None = None
    """Number of tokens to predict. This and all following fields are None for an unreadable document."""
    num_unscored_tokens: int | None = None
    """Unpredicted tokens: 1 if the tokenizer has no start token, so that the first token has no context; else 0."""
    num_segments: int | None = None
    num_words: int | None = None
    num_bytes: int | None = None
    text_digest: str | None = None
    """XXH3-128 of the text, which must not change until the job is resumed."""


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Scores of every predicted token of a segment; kept only on request."""

    targets: np.ndarray
    logprobs_longmem: np.ndarray
    logprobs_backbone: np.ndarray | None
    """None in one pass: the backbone alone did not run."""
    readings: TokenReadings | None = None
    """Readings of the tokens. This and `passage` are None only in records of earlier versions."""
    passage: Passage | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """Result of one scored segment.

    All fields are functions of text, model and settings: no times, no worker names.
    """

    document: str
    segment: int
    start_token: int
    num_tokens: int
    """Number of predicted tokens."""
    nll_longmem: float
    """Sum of negative log-probabilities in nats, added in float64."""
    nll_backbone: float | None
    """None in one pass: the backbone alone did not run."""
    memory_tokens: int
    gate_mean: float
    copy_mean: float
    """Mean share of the copy head in the output, as in `RetrievalStats`."""
    distance_mean: float
    empty_slots: int
    distance_histogram: list[int]
    chunks_digest: str
    tokens: TokenScores | None = None


@dataclass(frozen=True, kw_only=True)
class WindowRecord:
    """Result of one evaluation window of the backbone alone; a function of text, model and settings."""

    document: str
    window: int
    first_target: int
    """Position of the first scored target in the document's sequence."""
    num_tokens: int
    """Number of scored targets."""
    segment: int
    """Segment that the first scored target belongs to."""
    nll: list[float]
    """Negative log-probabilities in nats, added in float64 for each segment from `segment` on."""
    logprobs: np.ndarray | None = None
    """Log-probability of every scored target; kept only on request."""


Record = DocumentRecord | SegmentRecord | WindowRecord


def start_record(document: Document, order: int, segments: list[Segment], num_unscored_tokens: int) -> DocumentRecord:
    """Return the first record of a document that was read and segmented."""
    return DocumentRecord(
        document=document.id,
        order=order,
        source=document.source,
        status="started",
        num_tokens=sum(len(segment.targets) for segment in segments),
        num_unscored_tokens=num_unscored_tokens,
        num_segments=len(segments),
        num_words=document.num_words,
        num_bytes=document.num_bytes,
        text_digest=document.digest,
    )


def score_record(
    segment: Segment, score: SegmentScore, backbone_logprobs: np.ndarray | None, passage: Passage | None
) -> SegmentRecord:
    """Return the record of a scored segment; with the `passage` of its targets it keeps every token's scores.

    `backbone_logprobs` is None in one pass: the backbone alone did not run.
    """
    read = score.retrieval
    kept = None
    if passage is not None:
        assert score.readings is not None, f"{segment.key} segment {segment.index}: readings were not asked for"
        kept = TokenScores(
            targets=segment.targets,
            logprobs_longmem=score.logprobs,
            logprobs_backbone=backbone_logprobs,
            readings=score.readings,
            passage=passage,
        )
    return SegmentRecord(
        document=segment.key.document,
        segment=segment.index,
        start_token=segment.start_token,
        num_tokens=len(segment.targets),
        nll_longmem=-float(np.sum(score.logprobs, dtype=np.float64)),
        nll_backbone=None if backbone_logprobs is None else -float(np.sum(backbone_logprobs, dtype=np.float64)),
        memory_tokens=read.memory_tokens,
        gate_mean=read.gate_mean,
        copy_mean=read.copy_mean,
        distance_mean=read.distance_mean,
        empty_slots=read.empty_slots,
        distance_histogram=read.distance_histogram.tolist(),
        chunks_digest=read.chunks_digest,
        tokens=kept,
    )


def baseline_nats(segments: Iterable[SegmentRecord]) -> list[float] | None:
    """Return the nats of the backbone alone in each segment; None in one pass, where it scored none of them."""
    nats = [segment.nll_backbone for segment in segments]
    known = [each for each in nats if each is not None]
    assert len(known) in (0, len(nats)), f"the backbone alone scored {len(known)} of {len(nats)} segments"
    return known if known or not nats else None


def window_record(
    document: str, window: EvaluationWindow, logprobs: np.ndarray, segment_tokens: int, keep_tokens: bool
) -> WindowRecord:
    """Return the record of a scored window."""
    # segment k predicts the positions from k * segment_tokens + 1 to (k + 1) * segment_tokens
    segments = (window.first_target - 1 + np.arange(len(logprobs))) // segment_tokens
    parts = np.split(logprobs, np.flatnonzero(np.diff(segments)) + 1)
    return WindowRecord(
        document=document,
        window=window.index,
        first_target=window.first_target,
        num_tokens=len(logprobs),
        segment=int(segments[0]),
        nll=[-float(np.sum(part, dtype=np.float64)) for part in parts],
        logprobs=logprobs if keep_tokens else None,
    )


def encode(record: Record) -> dict[str, Any]:
    """Return a record as JSON values."""
    values = asdict(record)
    if isinstance(record, DocumentRecord):
        return {"kind": "document", **values}
    if isinstance(record, WindowRecord):
        if record.logprobs is not None:
            values["logprobs"] = text_of(record.logprobs)
        return {"kind": "window", **values}
    if record.tokens is not None:
        values["tokens"] = packed(record.tokens)
    return {"kind": "segment", **values}


def decode(values: dict[str, Any]) -> Record:
    """Return the record that `encode` was given. Raises KeyError, TypeError or ValueError for other values."""
    fields = dict(values)
    kind = fields.pop("kind")
    if kind == "document":
        return DocumentRecord(**fields)
    if kind == "window":
        if fields["logprobs"] is not None:
            fields["logprobs"] = array_of(fields["logprobs"], np.float32)
        return WindowRecord(**fields)
    if kind != "segment":
        raise ValueError(f"unknown kind of record {kind!r}")
    if fields["tokens"] is not None:
        kept = unpacked(fields["tokens"])
        for name, part in (("readings", TokenReadings), ("passage", Passage)):
            if kept.get(name) is not None:
                kept[name] = part(**kept[name])
        fields["tokens"] = TokenScores(**kept)
    return SegmentRecord(**fields)
