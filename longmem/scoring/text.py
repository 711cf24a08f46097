# SPDX-License-Identifier: Apache-2.0
"""Scores of one text in this process: the plain loop that every faster way of running must agree with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float32, Int32

from longmem.display import bars_html, facts_html
from longmem.memory.context import LocalMemory, SegmentMemory, StoredMemory, check_own, text_key
from longmem.memory.sliding_window import SlidingWindow
from longmem.model.forward import SegmentModel
from longmem.store.base import WritableDocument, check_fingerprint
from longmem.store.config import IN_MEMORY, MemoryStore
from longmem.store.document import DocumentMemory
from longmem.system.heap import PeriodicTrim
from longmem.text.segments import cut_segments
from longmem.types import Segment, SegmentScore
from longmem.wording import counted


@dataclass(frozen=True, repr=False)
class TextScores:
    """Log-probabilities (natural log) of a text's tokens, with memory and from the backbone alone."""

    logprobs: Float32[np.ndarray, " targets"]
    backbone_logprobs: Float32[np.ndarray, " targets"] | None
    """None in one pass: the backbone alone did not run."""
    num_unscored_tokens: int
    """1 when the tokenizer has no start token, so that the first token had nothing to be predicted from."""
    segments: list[SegmentScore]

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability per token, with memory; NaN when no token was predicted."""
        return float(np.exp(-np.mean(self.logprobs, dtype=np.float64))) if len(self.logprobs) else float("nan")

    @property
    def backbone_perplexity(self) -> float | None:
        """Perplexity without SideNet and memory; NaN when no token was predicted, None if the backbone did not run."""
        if self.backbone_logprobs is None:
            return None
        if not len(self.backbone_logprobs):
            return float("nan")
        return float(np.exp(-np.mean(self.backbone_logprobs, dtype=np.float64)))

    @property
    def change(self) -> float | None:
        """Change of perplexity by memory: −0.1 where it is a tenth lower than that of the backbone.

        None if the backbone did not run.
        """
        alone = self.backbone_perplexity
        return None if alone is None else self.perplexity / alone - 1

    def __repr__(self) -> str:
        alone = self.backbone_perplexity
        without = "" if alone is None else f", {alone:,.3f} without"
        return (
            f"TextScores({counted(len(self.logprobs), 'token')}, perplexity {self.perplexity:,.3f} with memory"
            f"{without})"
        )

    def _repr_html_(self) -> str:
        """Return the perplexities, and the gain of each segment: what memory read is worth along the text.

        If the backbone did not run, return the perplexity with memory alone.
        """
        alone, change = self.backbone_perplexity, self.change
        without = {} if alone is None else {"without memory": f"{alone:,.3f}", "change": f"{change:+.3%}"}
        facts = facts_html(
            "Perplexity per token",
            {
                "with memory": f"{self.perplexity:,.3f}",
                **without,
                "tokens": f"{len(self.logprobs):,} in {counted(len(self.segments), 'segment')}",
            },
        )
        if self.backbone_logprobs is None:
            return facts
        ends = np.cumsum([len(segment.logprobs) for segment in self.segments])[:-1]
        gains = np.split(self.logprobs.astype(np.float64) - self.backbone_logprobs, ends)
        means = [float(gain.mean()) for gain in gains if len(gain)]
        return facts + bars_html(means, "Gain of each segment by memory", "nats per token")


def score_text(model: SegmentModel, text: str, memory: DocumentMemory | None = None) -> TextScores:
    """Read a text segment by segment; each segment reads the memory before it, then its own block is added.

    With a `DocumentMemory` the text is that document: blocks are written to it (again scoring the same text finds
    them there). With `memory.as_read_only()` the text follows the document and nothing is written. With None the text
    has a private memory of its own past.

    Raises DocumentError (no tokens), FingerprintError (another model's store), ConflictError (another text),
    NumericError, StoreError.
    """
    scores = score_sequence(model, model.tokenizer.sequence(text), memory)
    return replace(scores, num_unscored_tokens=int(model.tokenizer.start_token is None))


def score_sequence(
    model: SegmentModel, sequence: Int32[np.ndarray, " tokens"], memory: DocumentMemory | None = None
) -> TextScores:
    """Score tokens as `score_text` scores a text; the first token is only read."""
    segments = cut_segments(text_key(memory), sequence, model.config.segment_tokens)
    if memory is not None:
        check_fingerprint(memory.store.fingerprint(), model.fingerprint)
    source: SegmentMemory
    if isinstance(memory, WritableDocument) and not memory.read_only:
        check_own(memory, segments)
        source = StoredMemory(model, memory)
    else:
        source = LocalMemory(model, memory)
    scores, backbone = zip(*_score_segments(model, segments, source), strict=True)
    return TextScores(
        logprobs=np.concatenate([score.logprobs for score in scores]),
        backbone_logprobs=joined_baseline(backbone),
        num_unscored_tokens=0,
        segments=list(scores),
    )


def joined_baseline(
    segments: Sequence[np.ndarray | None],
) -> Float32[np.ndarray, " targets"] | None:
    """Return the log-probabilities of the backbone alone over all segments; None in one pass."""
    alone = [segment for segment in segments if segment is not None]
    assert len(alone) in (0, len(segments)), "all segments have log-probabilities of the backbone alone, or none"
    return np.concatenate(alone) if alone else None


def remembered_text(
    model: SegmentModel,
    text: str,
    name: str = "memory",
    shown: Callable[[Sequence[Segment]], Iterable[Segment]] = lambda segments: segments,
) -> DocumentMemory:
    """Return the memory of a text in this process, to score or generate what follows it.

    Only segments that a text after it may read are encoded; `shown` passes them on, and may show progress. Raises
    DocumentError for a text without tokens.
    """
    store = MemoryStore.open(IN_MEMORY)
    memory = store.document(name)
    sequence = model.tokenizer.sequence(text)
    segments = cut_segments(memory.key, sequence, model.config.segment_tokens, scored=False)
    window = SlidingWindow.of(model.config)
    read = window.segments(window.before(len(sequence)))
    for segment in shown(segments[read.start : read.stop]):
        store.put(model.encode(segment).block)
    return memory.as_read_only()


def score_segments(model: SegmentModel, sequence: Int32[np.ndarray, " tokens"]) -> Iterator[SegmentScore]:
    """Yield the scores of tokens with a private memory; a segment is computed when it is asked for."""
    segments = cut_segments(text_key(None), sequence, model.config.segment_tokens)
    for score, _ in _score_segments(model, segments, LocalMemory(model)):
        yield score


def _score_segments(
    model: SegmentModel, segments: Sequence[Segment], memory: SegmentMemory
) -> Iterator[tuple[SegmentScore, Float32[np.ndarray, " targets"] | None]]:
    """Yield the scores of each segment, and log-probabilities of the backbone alone (None in one pass)."""
    trim = PeriodicTrim()
    for segment in segments:
        placed = replace(segment, start_token=memory.offset + segment.start_token)
        past = partial(memory.view, segment.index)
        encoded = model.encode_in_document(segment, past)
        yield (
            model.score_segment(placed, encoded.block.keys, encoded.state, past(), encoded.backbone_logprobs),
            encoded.baseline,
        )
        memory.accept(encoded.block)
        # as a job does: a text of millions of tokens would otherwise spread over what its tokenizer left
        trim()
