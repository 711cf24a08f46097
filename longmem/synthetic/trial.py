"""One question to a memory, asked and judged.

greedy   every token of the answer is the most probable one: what greedy decoding would write
chosen   the answer is the most probable of a few offered ones
read     where each token of the answer is predicted, the chunk was retrieved after whose place it stands in the memory
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
    """What is asked, the answers offered (the right one first), and where the right one stands."""

    context: Tokens
    """All that is read before the answer, from the start token on."""
    answers: list[Tokens]
    position: int
    """In the memory, of the answer's first token."""


@dataclass(frozen=True)
class Trial:
    """One row of trials.parquet."""

    subject: str
    memory_tokens: int
    examples: int
    """Pairs in memory; 1 for a pass key."""
    depth: float
    """Of the answer in the memory: 0 oldest, 1 newest."""
    shots: int
    """Other pairs in the local context."""
    choices: int
    """Answers offered: chance is one in so many."""
    greedy: bool
    chosen: bool
    read: bool
    nats: float
    """Of the answer, over its tokens."""
    greedy_without: bool
    """The same under the backbone alone, which sees the local context and no memory."""
    chosen_without: bool
    nats_without: float


def ask(model: LongMem, questions: Sequence[Question], view: MemoryView) -> list[ItemScore]:
    """Scores of the answers of all questions, in order. Raises DocumentError for a question that fits no segment."""
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
    """Turn the scores of one question's answers into a trial."""
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
    """Whether every token of an answer that stands at `position` was predicted with the chunk before it retrieved."""
    places = position - 1 + np.arange(len(score.reads))[:, None]
    inside = (score.reads >= 0) & (score.reads <= places) & (places < score.reads + chunk_tokens)
    return bool(inside.any(axis=1).all())


def _is_first(totals: list[float]) -> bool:
    return all(totals[0] > other for other in totals[1:])
