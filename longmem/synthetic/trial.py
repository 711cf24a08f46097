# SPDX-License-Identifier: Apache-2.0
"""One question to a memory: its scores and their evaluation.

greedy   every token of the answer is the most probable of the vocabulary: greedy decoding gives the answer
chosen   the answer is the most probable of the offered ones
read     for each token of the answer, the chunk with the token before it in the memory was retrieved
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from longmem.backbone.tokenizer import Tokenizer
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring.batch import Item, ItemScore, TargetScores, score_items
from longmem.synthetic.answer_readings import AnswerReadings, answer_readings
from longmem.synthetic.memory import Tokens, tokens_of

PROMPT_CHARACTERS = 600
"""Characters of a question that a trial keeps, the last ones."""


@dataclass(frozen=True)
class Question:
    """A question, the answers offered (the right one first), and the position of the right one."""

    context: Tokens
    """All tokens read before the answer, from the start token on."""
    answers: list[Tokens]
    position: int
    """Position of the answer's first token in the memory."""
    prompt: str = ""
    """Text of the context."""
    texts: tuple[str, ...] = ()
    """Texts of the answers, without the space before them."""


def question_of(tokenizer: Tokenizer, context: Tokens, prompt: str, texts: Sequence[str], position: int) -> Question:
    """Return a question with the tokens of its answers."""
    return Question(context, [tokens_of(tokenizer, f" {text}") for text in texts], position, prompt, tuple(texts))


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
    question: str | None = None
    """End of the question. This and the next five fields are None in jobs of earlier versions."""
    answer: str | None = None
    """The right answer."""
    longmem: str | None = None
    """Most probable of the answers offered with memory; empty for a tie."""
    backbone: str | None = None
    """Most probable of the answers offered without memory; empty for a tie."""
    greedy_answer: str | None = None
    """Beginning of the answer of greedy decoding, up to its first token that differs from the right one."""
    greedy_answer_without: str | None = None
    readings: AnswerReadings | None = None
    """Readings of the right answer; kept only on request."""


def ask(
    model: LongMem, questions: Sequence[Question], view: MemoryView, keep_readings: bool = False
) -> list[ItemScore]:
    """Return the scores of the answers of all questions, in order.

    Raises DocumentError for a question that fits no segment.
    """
    items = [
        Item(f"question {number}", np.concatenate([question.context, answer]), len(question.context))
        for number, question in enumerate(questions)
        for answer in question.answers
    ]
    return score_items(model, items, [view] * len(items), keep_readings=keep_readings)


def trials_of(
    model: LongMem,
    subject: str,
    questions: Sequence[Question],
    view: MemoryView,
    examples: int,
    shots: int,
    depths: Sequence[float],
    keep_readings: bool,
) -> Iterator[Trial]:
    """Ask questions about one memory and yield their trials, with texts; `depths` has one entry per question.

    Raises what `ask` raises.
    """
    scores = iter(ask(model, questions, view, keep_readings))
    for question, depth in zip(questions, depths, strict=True):
        own = [next(scores) for _ in question.answers]
        trial = judge(subject, question, own, view, examples, shots, depth)
        yield replace(
            trial,
            question=_end_of(question.prompt),
            answer=question.texts[0],
            longmem=_chosen(question.texts, [score.longmem.total for score in own]),
            backbone=_chosen(question.texts, [score.backbone.total for score in own]),
            greedy_answer=_greedy_answer(model.tokenizer, own[0].longmem),
            greedy_answer_without=_greedy_answer(model.tokenizer, own[0].backbone),
            readings=_readings(model, question, own, view) if keep_readings else None,
        )


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
    return bool(_read_tokens(score, position, chunk_tokens).all())


def _read_tokens(score: ItemScore, position: int, chunk_tokens: int) -> Bool[np.ndarray, " targets"]:
    places = position - 1 + np.arange(len(score.reads))[:, None]
    inside: np.ndarray = (score.reads >= 0) & (score.reads <= places) & (places < score.reads + chunk_tokens)
    return np.asarray(inside.any(axis=1))


def _readings(model: LongMem, question: Question, scores: Sequence[ItemScore], view: MemoryView) -> AnswerReadings:
    found = _read_tokens(scores[0], question.position, view.chunk_size).tolist()
    asked, answer = len(question.context), question.answers[0]
    return answer_readings(model, question.texts, answer, asked, question.position, found, scores, view)


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= PROMPT_CHARACTERS else f"…{prompt[-PROMPT_CHARACTERS:]}"


def _is_first(totals: list[float]) -> bool:
    return all(totals[0] > other for other in totals[1:])


def _chosen(texts: Sequence[str], totals: list[float]) -> str:
    best = max(totals)
    return texts[totals.index(best)] if totals.count(best) == 1 else ""


def _greedy_answer(tokenizer: Tokenizer, scores: TargetScores) -> str:
    right = int(scores.greedy.argmin()) if not scores.greedy.all() else len(scores.greedy)
    return tokenizer.decode(scores.choices[: right + 1].tolist()).strip()
