"""What a job remembers of its documents and segments: the lines of its journal, the rows of its parquet files."""

import base64
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from longmem.types import Document, Segment, SegmentScore

Status = Literal["started", "scored", "failed"]


@dataclass(frozen=True, kw_only=True)
class DocumentRecord:
    """One document; the last record of an id is the valid one."""

    document: str
    order: int
    """Position among the job's inputs."""
    source: str
    status: Status
    error: str | None = None
    num_tokens: int | None = None
    """Tokens to predict. This and the following are None for a document that could not be read."""
    num_unscored_tokens: int | None = None
    """1 where the tokenizer has no start token, so that the text's first token has nothing to be predicted from."""
    num_segments: int | None = None
    num_words: int | None = None
    num_bytes: int | None = None
    text_digest: str | None = None
    """XXH3-128 of the text: a resumed job must see the same one."""


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Every predicted token of a segment, only kept on request."""

    targets: np.ndarray
    logprobs_longmem: np.ndarray
    logprobs_backbone: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """One scored segment. Everything here is a function of text, model and settings: no times, no worker names."""

    document: str
    segment: int
    start_token: int
    num_tokens: int
    """Predicted tokens."""
    nll_longmem: float
    """Sum of negative log-probabilities (nats), added in float64."""
    nll_backbone: float
    memory_tokens: int
    gate_mean: float
    copy_mean: float
    """Mean share of the copy head in the output, as in `RetrievalStats`."""
    distance_mean: float
    empty_slots: int
    distance_histogram: list[int]
    chunks_digest: str
    tokens: TokenScores | None = None


Record = DocumentRecord | SegmentRecord


def start_record(document: Document, order: int, segments: list[Segment], num_unscored_tokens: int) -> DocumentRecord:
    """Facts about a document that was read and cut."""
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
    segment: Segment, score: SegmentScore, backbone_logprobs: np.ndarray, keep_tokens: bool
) -> SegmentRecord:
    """The record of a segment that was just scored."""
    read = score.retrieval
    kept = TokenScores(targets=segment.targets, logprobs_longmem=score.logprobs, logprobs_backbone=backbone_logprobs)
    return SegmentRecord(
        document=segment.key.document,
        segment=segment.index,
        start_token=segment.start_token,
        num_tokens=len(segment.targets),
        nll_longmem=-float(np.sum(score.logprobs, dtype=np.float64)),
        nll_backbone=-float(np.sum(backbone_logprobs, dtype=np.float64)),
        memory_tokens=read.memory_tokens,
        gate_mean=read.gate_mean,
        copy_mean=read.copy_mean,
        distance_mean=read.distance_mean,
        empty_slots=read.empty_slots,
        distance_histogram=read.distance_histogram.tolist(),
        chunks_digest=read.chunks_digest,
        tokens=kept if keep_tokens else None,
    )


def encode(record: Record) -> dict[str, Any]:
    """A record as JSON values."""
    values = asdict(record)
    if isinstance(record, DocumentRecord):
        return {"kind": "document", **values}
    if record.tokens is not None:
        values["tokens"] = {
            name: base64.b64encode(np.ascontiguousarray(array).data).decode("ascii")
            for name, array in vars(record.tokens).items()
        }
    return {"kind": "segment", **values}


def decode(values: dict[str, Any]) -> Record:
    """The record that `encode` was given. Raises KeyError, TypeError or ValueError for anything else."""
    fields = dict(values)
    kind = fields.pop("kind")
    if kind == "document":
        return DocumentRecord(**fields)
    if kind != "segment":
        raise ValueError(f"unknown kind of record {kind!r}")
    if fields["tokens"] is not None:
        fields["tokens"] = TokenScores(
            **{
                name: np.frombuffer(base64.b64decode(text), dtype=np.int32 if name == "targets" else np.float32)
                for name, text in fields["tokens"].items()
            }
        )
    return SegmentRecord(**fields)
