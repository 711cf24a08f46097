# SPDX-License-Identifier: Apache-2.0
"""Pairs: many short lines `key value` in memory, some of which are queried.

lookup   a dictionary: two words → two words, every value different (after the dictionary task of Focused Transformer,
         Tworkowski et al. 2023, arXiv 2307.03170)
labels   many-shot classification that only the demonstrations can teach: a word → a random one of a few labels

The queried line is in memory only. Shots are other lines in the local context. The backbone alone sees only the shots,
which is plain in-context learning.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.synthetic.memory import OnEncoded, Tokens, ignore_encoded, packed_memory, start_of, tokens_of
from longmem.synthetic.trial import Trial, question_of, trials_of
from longmem.synthetic.vocabulary import words_of
from longmem.text.demonstrations import pack, positions_of

PairSubject = Literal["lookup", "labels"]
QUESTIONS_AT_A_TIME = 32
WORDS_OF_A_KEY = 2


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """Sizes of a pair test. Raises ConfigError for values that cannot work."""

    subject: PairSubject
    examples: tuple[int, ...] = (20, 200, 2_000)
    """Numbers of lines in memory."""
    shots: tuple[int, ...] = (0, 16)
    """Numbers of other lines in the local context."""
    questions: int = 50
    """Questions for each number of lines and of shots."""
    choices: int = 10
    """Number of answers offered, and number of labels."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subject not in ("lookup", "labels"):
            raise ConfigError(f"subject must be lookup or labels, got {self.subject!r}")
        if self.questions < 1:
            raise ConfigError(f"questions must be at least 1, got {self.questions}")
        if self.choices < 2:
            raise ConfigError(f"choices must be at least 2, got {self.choices}")
        if not self.shots or min(self.shots) < 0:
            raise ConfigError(f"shots must be whole numbers of at least 0, got {list(self.shots)}")
        least = max(self.choices, max(self.shots) + 1)
        if not self.examples or min(self.examples) < least:
            raise ConfigError(
                f"examples must be at least {least} (as many as there are choices, and one more than shots), got "
                f"{list(self.examples)}"
            )


@dataclass(frozen=True)
class Pair:
    """One line of the memory."""

    key: str
    value: str


def draw_pairs(plan: PairPlan, words: list[str], count: int) -> list[Pair]:
    """Return `count` lines with different keys. Raises ConfigError when the text has too few words."""
    chance = random.Random(f"{plan.seed} {plan.subject} {count}")
    mixed = chance.sample(words, len(words))
    if plan.subject == "labels":
        labels, keys = mixed[: plan.choices], mixed[plan.choices :]
        if count > len(keys):
            raise ConfigError(
                f"{count} demonstrations and {plan.choices} labels need {count + plan.choices} different words, the "
                f"text has {len(words)}; ask for fewer, or give a longer text"
            )
        # balanced labels in random order: no label is right more often than another
        return [
            Pair(key, labels[rank % plan.choices])
            for rank, key in zip(chance.sample(range(count), count), keys[:count], strict=True)
        ]
    half = len(words) // 2
    if count > half * (half - 1) // 2:
        raise ConfigError(f"{count} different keys need more than the {len(words)} words of the text; ask for fewer")
    keys, values = _combinations(mixed[:half], count, chance), _combinations(mixed[half:], count, chance)
    return [Pair(key, value) for key, value in zip(keys, values, strict=True)]


def _combinations(words: list[str], count: int, chance: random.Random) -> list[str]:
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[" ".join(chance.sample(words, WORDS_OF_A_KEY))] = None
    return list(drawn)


def pair_trials(
    model: LongMem,
    text: str,
    plan: PairPlan,
    keep_readings: bool = False,
    on_encoded: OnEncoded = ignore_encoded,
) -> Iterator[Trial]:
    """Yield trials by number of lines and of shots. `keep_readings` keeps what the right answers read.

    `on_encoded` is called after each encoded segment of a memory.

    Raises ConfigError, DocumentError when a question fits no segment, NumericError.
    """
    words = words_of(text, plan.choices + 2)
    tokenizer, start = model.tokenizer, start_of(model.tokenizer)
    everything = [draw_pairs(plan, words, count) for count in plan.examples]
    for pairs in everything:
        lines = [_line(model, pair) for pair in pairs]
        segments = pack(lines, model.config.segment_tokens, tokenizer.start_token)
        positions = positions_of(lines, segments, model.config.segment_tokens)
        view = packed_memory(model, segments, on_encoded)
        values = sorted({pair.value for pair in pairs})
        for shots in plan.shots:
            chance = random.Random(f"{plan.seed} {len(pairs)} {shots}")
            questions = []
            for index in chance.choices(range(len(pairs)), k=plan.questions):
                others = [other for other in range(len(pairs)) if other != index]
                shown = chance.sample(others, shots)
                key = tokens_of(tokenizer, pairs[index].key)
                wrong = chance.sample([value for value in values if value != pairs[index].value], plan.choices - 1)
                context = np.concatenate([start, *(lines[other] for other in shown), key])
                prompt = "".join("".join(_parts(pairs[other])) for other in shown) + pairs[index].key
                position = positions[index] + len(key)
                questions.append(question_of(tokenizer, context, prompt, (pairs[index].value, *wrong), position))
            for first in range(0, len(questions), QUESTIONS_AT_A_TIME):
                part = questions[first : first + QUESTIONS_AT_A_TIME]
                depths = [question.position / view.end_token for question in part]
                yield from trials_of(model, plan.subject, part, view, len(pairs), shots, depths, keep_readings)


def _parts(pair: Pair) -> tuple[str, str, str]:
    """Return the parts of a line, which are tokenised separately."""
    return pair.key, f" {pair.value}", "\n"


def _line(model: LongMem, pair: Pair) -> Tokens:
    return np.concatenate([tokens_of(model.tokenizer, part) for part in _parts(pair)])
