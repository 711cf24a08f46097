# SPDX-License-Identifier: Apache-2.0
"""Readings of a question's right answer: which places of the memory each of its tokens read, with the text there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longmem.backbone.tokenizer import Tokenizer
from longmem.dtypes import to_array
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.batch import ItemScore
from longmem.sidenet.token_readings import positions_of
from longmem.synthetic.memory import Tokens

AROUND = 24
"""Tokens shown before and after a place."""


@dataclass(frozen=True)
class ShownPlace:
    """Token or tokens of a memory with the text around them."""

    position: int
    """Position of the first token in the memory."""
    passage: str
    """Text of the tokens, and of `AROUND` tokens before and after them."""
    start: int
    """Characters of the passage before the tokens."""
    length: int
    """Characters of the tokens."""


@dataclass(frozen=True)
class ReadPlace(ShownPlace):
    """Place that the prediction of one token read."""

    weight: float
    """Weight among all places, which together weigh 1."""
    run: int
    """Number of equal tokens before the place and before the predicted token, counted up to 16."""
    same: bool
    """True where the place holds the predicted token."""


@dataclass(frozen=True)
class AnswerToken:
    """One token of the right answer. Log-probabilities are natural."""

    passage: str
    """Text of the token; empty for later bytes of one character."""
    logprob: float
    logprob_without: float
    uncopied: float
    """Log-probability before copies are mixed in."""
    copy_share: float
    """Share of the copies in the prediction."""
    copied: float
    """Summed weight of all places that hold the token."""
    right: int
    """Position of the right place, as in `places`: that of the token in the memory, or of the one before it."""
    read: bool
    """True where the right place was among those retrieved."""
    places: list[ReadPlace]
    """The four heaviest places, heaviest first."""


@dataclass(frozen=True)
class AnswerReadings:
    """Scores of all answers offered, and readings of the right one."""

    answers: list[str]
    """Answers offered, the right one first."""
    nats: list[float]
    """Negative log-probability of each answer in nats, summed over its tokens."""
    nats_without: list[float]
    asked: int
    """Position of the answer's first token, if the question followed the memory."""
    place: ShownPlace
    """The answer in the memory."""
    blocks: list[list[int]]
    """Half-open intervals of positions that the question read at every layer; empty for a SideNet."""
    tokens: list[AnswerToken]


class MemoryText:
    """Text of a memory by position."""

    def __init__(self, view: MemoryView, tokenizer: Tokenizer) -> None:
        self._tokens: np.ndarray = to_array(view.text)
        self._positions: np.ndarray = to_array(positions_of(view))
        self._end, self._tokenizer = view.end_token, tokenizer

    def around(self, position: int, count: int = 1) -> ShownPlace:
        """Return `count` tokens from a position on, with those around them."""
        first = int(np.searchsorted(self._positions, position))
        before, text, after = (
            self._decoded(begin, end)
            for begin, end in (
                (max(first - AROUND, 0), first),
                (first, first + count),
                (first + count, first + count + AROUND),
            )
        )
        return ShownPlace(position, before + text + after, len(before), len(text))

    def token(self, position: int) -> int | None:
        """Return the token at a position; None for the end of the memory, where the question begins."""
        if position >= self._end:
            return None
        return int(self._tokens[np.searchsorted(self._positions, position)])

    def _decoded(self, begin: int, end: int) -> str:
        return self._tokenizer.decode(self._tokens[begin:end].tolist())


def answer_readings(
    model: LongMem,
    texts: Sequence[str],
    answer: Tokens,
    asked: int,
    position: int,
    found: Sequence[bool],
    scores: Sequence[ItemScore],
    view: MemoryView,
) -> AnswerReadings:
    """Return the readings of a question, whose first answer is the right one.

    Args:
        texts: Answers offered, without the space before them.
        answer: Tokens of the right one.
        asked: Tokens before the answer in the question.
        position: Position of the answer's first token in the memory.
        found: Whether the right place of each token was retrieved.
        scores: Scores of the answers, with readings.
    """
    right = scores[0]
    assert right.readings is not None, "readings were not kept"
    kept, memory = right.readings, MemoryText(view, model.tokenizer)
    # with a copy head or values of the next token, the place of a reading is the token that was taken
    before = 0 if model.config.copy_head or model.config.values == "next" else 1
    tokens = []
    for index, text in enumerate(model.tokenizer.cut(f" {texts[0]}")):
        places = [
            ReadPlace(
                **vars(memory.around(int(place))),
                weight=float(weight),
                run=int(run),
                same=memory.token(int(place)) == int(answer[index]),
            )
            for place, weight, run in zip(kept.places[index], kept.weights[index], kept.runs[index], strict=True)
            if place >= 0
        ]
        tokens.append(
            AnswerToken(
                passage=text,
                logprob=float(right.longmem.logprobs[index]),
                logprob_without=float(right.backbone.logprobs[index]),
                uncopied=float(kept.uncopied[index]),
                copy_share=float(kept.copy_share[index]),
                copied=float(kept.copied[index]),
                right=position + index - before,
                read=bool(found[index]),
                places=places,
            )
        )
    return AnswerReadings(
        answers=list(texts),
        nats=[-score.longmem.total for score in scores],
        nats_without=[-score.backbone.total for score in scores],
        asked=view.end_token + asked,
        place=memory.around(position, len(answer)),
        blocks=kept.blocks.tolist(),
        tokens=tokens,
    )
