# SPDX-License-Identifier: Apache-2.0
"""Scores of one example at every context length: nats of its candidates with memory, without it, of the backbone, and
without any context.

memory (context_tokens − local)    local context          candidate
──────────────────────────────────┤ equal for all models ├── at most suffix_tokens ──┤
                                   └──────────── one segment ────────────────────────┘
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import ConfigError
from longmem.memory.context import ContextMemory
from longmem.model.longmem import LongMem
from longmem.scoring.batch import Item, ItemScore, score_items
from longmem.types import TokenReadings
from pipelines.suffix.data import SuffixExample


@dataclass(frozen=True, kw_only=True)
class SuffixLengths:
    """Numbers of tokens that are read of an example."""

    context_tokens: tuple[int, ...]
    """Context lengths in tokens, ascending; the last tokens of a longer context are read."""
    suffix_tokens: int
    """Maximum tokens of a candidate; the first tokens of a longer one are scored."""

    def __post_init__(self) -> None:
        if not self.context_tokens or min(self.context_tokens) < 1:
            raise ConfigError(f"--context-tokens must be numbers of at least 1, got {list(self.context_tokens)}")
        if list(self.context_tokens) != sorted(set(self.context_tokens)):
            raise ConfigError(f"--context-tokens must ascend, got {list(self.context_tokens)}")
        if self.suffix_tokens < 1:
            raise ConfigError(f"--suffix-tokens must be at least 1, got {self.suffix_tokens}")

    def local_tokens(self, segment_tokens: int) -> int:
        """Return the tokens of context before a candidate in one segment; the last token is predicted, not read.

        Raises ConfigError if there is no room for any.
        """
        local = segment_tokens + 1 - self.suffix_tokens
        if local < 1:
            raise ConfigError(
                f"--suffix-tokens {self.suffix_tokens} leaves no room for context in a segment of {segment_tokens} "
                f"tokens; give at most {segment_tokens}"
            )
        return local


@dataclass(frozen=True, kw_only=True)
class CandidateReadings:
    """Natural-log probabilities of one candidate's scored tokens, and what their predictions read."""

    logprobs_memory: Float32[np.ndarray, " tokens"]
    logprobs_no_memory: Float32[np.ndarray, " tokens"]
    logprobs_backbone: Float32[np.ndarray, " tokens"]
    readings: TokenReadings
    """Readings with memory; places are positions in the context."""


@dataclass(frozen=True, kw_only=True)
class SuffixScore:
    """Scores of one example at one context length; lists are in the order of the example's candidates."""

    example: str
    work: str
    label: int
    context_tokens: int
    """Requested tokens of context."""
    local_tokens: int
    memory_tokens: int
    """Tokens in the view, including the start token if the context begins in it."""
    suffix_tokens: list[int]
    """Number of scored tokens of each candidate."""
    nll_memory: list[float]
    """Negative log-likelihood of each candidate in nats, with memory."""
    nll_no_memory: list[float]
    """Negative log-likelihood of the same model and local context, with an empty memory."""
    nll_backbone: list[float]
    """Negative log-likelihood of the frozen backbone with the same local context."""
    nll_alone: list[float]
    """Negative log-likelihood of the frozen backbone behind the start token alone. Without a start token it is that of
    all tokens but the first."""
    readings: list[CandidateReadings] | None = None
    """Readings of each candidate; kept only on request."""


def score_example(
    model: LongMem, example: SuffixExample, lengths: SuffixLengths, keep_readings: bool = False
) -> list[SuffixScore]:
    """Return one score per context length, ascending; with `keep_readings`, also what every token read.

    Raises DocumentError for a text without tokens, NumericError.
    """
    context = model.tokenizer.sequence(example.context)
    candidates = [plain(model.tokenizer, text)[: lengths.suffix_tokens] for text in example.candidates]
    room = lengths.local_tokens(model.config.segment_tokens)
    memory = ContextMemory(model, context[: len(context) - room] if len(context) > room else context[:0])
    # a context that is read as a whole includes its start token
    num_text = len(context) - (model.tokenizer.start_token is not None)
    read = [len(context) if num_text <= requested else requested for requested in lengths.context_tokens]
    local = [min(num_read, room) for num_read in read]
    views = [memory.view(num_read - num_local) for num_read, num_local in zip(read, local, strict=True)]
    # one way per local context and index of its view, -1 for an empty memory
    view_index = [-1 if view is None else index for index, view in enumerate(views)]
    ways = dict(zip(zip(local, view_index, strict=True), views, strict=True)) | {
        (num_local, -1): None for num_local in local
    }
    # grouped by candidate, so that the backbone reads each once for all its views
    items = [
        Item(
            f"{example.id} candidate {index}",
            np.concatenate([context[-num_local:], tokens]),
            num_local,
            continues=num_local < len(context),
        )
        for index, tokens in enumerate(candidates)
        for num_local, _ in ways
    ]
    scores = score_items(model, items, [*ways.values()] * len(candidates), keep_readings=keep_readings)
    scores_of = {way: scores[first :: len(ways)] for first, way in enumerate(ways)}
    alone = _nll_alone(model, candidates)
    of_length = [
        (scores_of[local[index], view_index[index]], scores_of[local[index], -1]) for index in range(len(read))
    ]
    return [
        SuffixScore(
            example=example.id,
            work=example.work,
            label=example.label,
            context_tokens=context_tokens,
            local_tokens=local[index],
            memory_tokens=0 if (view := views[index]) is None else view.num_tokens,
            suffix_tokens=[len(tokens) for tokens in candidates],
            nll_memory=[-score.longmem.total for score in with_memory],
            nll_no_memory=[-score.longmem.total for score in without],
            nll_backbone=[-score.backbone.total for score in without],
            nll_alone=alone,
            readings=list(map(_readings, with_memory, without)) if keep_readings else None,
        )
        for index, (context_tokens, (with_memory, without)) in enumerate(
            zip(lengths.context_tokens, of_length, strict=True)
        )
    ]


def _nll_alone(model: LongMem, candidates: list[Int32[np.ndarray, " tokens"]]) -> list[float]:
    start = model.tokenizer.start_token
    begin = np.zeros(0, dtype=np.int32) if start is None else np.array([start], dtype=np.int32)
    texts = [np.concatenate([begin, tokens]) for tokens in candidates]
    # a single token without a start token has nothing in front of it
    items = [Item(f"candidate {index}", text, 1) for index, text in enumerate(texts) if len(text) > 1]
    scores = iter(score_items(model, items, [None] * len(items)))
    return [-next(scores).backbone.total if len(text) > 1 else 0.0 for text in texts]


def _readings(with_memory: ItemScore, without: ItemScore) -> CandidateReadings:
    assert with_memory.readings is not None, "readings were not kept"
    return CandidateReadings(
        logprobs_memory=with_memory.longmem.logprobs,
        logprobs_no_memory=without.longmem.logprobs,
        logprobs_backbone=without.backbone.logprobs,
        readings=with_memory.readings,
    )


def plain(tokenizer: Tokenizer, text: str) -> Int32[np.ndarray, " tokens"]:
    """Return the tokens of a text that continues another one, without a start token."""
    return tokenizer.tokens(text)
