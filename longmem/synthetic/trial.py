# SPDX-License-Identifier: Apache-2.0
"""One question to a memory: its scores and their evaluation.

greedy   every token of the answer is the most probable one: greedy decoding would produce the answer
chosen   the answer is the most probable of the offered ones
read     for each token of the answer, the chunk with the token before it in the memory was retrieved
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.batch import Item, ItemScore, score_items
from longmem.synthetic.memory import Tokens


@dataclass(frozen=True)
class Question:
    """A question, the answers offered (the right one first), and the position of the right one."""

    context: Tokens
    """All tokens read before the answer, from the start token on."""
    answers: list[Tokens]
    position: int
    """Position of the answer's first token in the memory."""


@dataclass(frozen=True)
class Trial:
    """One row of trials.parquet."""

    subject: str
    memory_tokens: int
    examples: int
    """Number of pairs in memory; 1 for a pass key."""
    depth: float
    """Depth of the answer in the memory: 0 oldest, 1 newest."""
    shots: int
    """Number of other pairs in the local context."""
    choices: int
    """Number of answers offered: the chance level is 1 / choices."""
    greedy: bool
    chosen: bool
    read: bool
    nats: float
    """Negative log-probability of the answer in nats, summed over its tokens."""
    greedy_without: bool
    """`greedy` under the backbone alone, which reads the local context and no memory."""
    chosen_without: bool
    nats_without: float


def ask(model: LongMem, questions: Sequence[Question], view: MemoryView) -> list[ItemScore]:
    """Return the scores of the answers of all questions, in order.

    Raises DocumentError for a question that fits no segment.
    """
    items = [
        Item(f"question {number}", np.concatenate([question.context, answer]), len(question.context))
        for number, question in enumerate(questions)
        for answer in question.answers
    ]
    return score_items(model, items, [view] * len(items))


def judge(
    subject: str,
    question: Question,
    scores: Sequence[ItemScore],
    view: MemoryView,
    examples: int,
    shots: int,
    depth: float,
) -> Trial:
    """Convert the scores of one question's answers into a trial."""
    right = scores[0]
    return Trial(
        subject=subject,
        memory_tokens=view.num_tokens,
        examples=examples,
        depth=depth,
        shots=shots,
        choices=len(question.answers),
        greedy=bool(right.longmem.greedy.all()),
        chosen=_is_first([score.longmem.total for score in scores]),
        read=was_read(right, question.position, view.chunk_size),
        nats=-right.longmem.total,
        greedy_without=bool(right.backbone.greedy.all()),
        chosen_without=_is_first([score.backbone.total for score in scores]),
        nats_without=-right.backbone.total,
    )


def was_read(score: ItemScore, position: int, chunk_tokens: int) -> bool:
    """Return True if, for every token of an answer at `position`, the chunk with the token before it was retrieved."""
    places = position - 1 + np.arange(len(score.reads))[:, None]
    inside = (score.reads >= 0) & (score.reads <= places) & (places < score.reads + chunk_tokens)
    return bool(inside.any(axis=1).all())


def _is_first(totals: list[float]) -> bool:
    return all(totals[0] > other for other in totals[1:])
