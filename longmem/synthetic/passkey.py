# SPDX-License-Identifier: Apache-2.0
"""Pass keys: one sentence with a key, hidden at some depth in a long text; the question is the sentence's beginning.

The test follows Mohtashami and Jaggi (2023, arXiv 2305.16300). The key is a few random words, or five digits.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.synthetic.memory import FillerMemory, OnEncoded, Tokens, ignore_encoded, start_of, tokens_of
from longmem.synthetic.trial import Trial, question_of, trials_of
from longmem.synthetic.vocabulary import sentences_of, words_of

QUESTION = "\n\nThe pass key of the old house by the river is"
AFTER = ".\n\n"
KEY_WORDS = 4
KEY_DIGITS = 5
KeyKind = Literal["words", "digits"]


@dataclass(frozen=True, kw_only=True)
class PasskeyPlan:
    """Sizes of a pass-key test. Raises ConfigError for values that cannot work."""

    lengths: tuple[int, ...] = (4_096, 16_384, 65_536, 262_144, 1_048_576)
    """Memory lengths in tokens."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Depths of the needle: 0 at the beginning of the memory, 1 at its end."""
    trials: int = 10
    """Trials for each length and depth."""
    choices: int = 5
    """Number of keys offered, the right one among them."""
    key: KeyKind = "words"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths must be whole numbers of at least 1, got {list(self.lengths)}")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ConfigError(f"depths must lie between 0 (oldest) and 1 (newest), got {list(self.depths)}")
        if self.trials < 1:
            raise ConfigError(f"trials must be at least 1, got {self.trials}")
        if self.choices < 2:
            raise ConfigError(f"choices must be at least 2, got {self.choices}")
        if self.key not in ("words", "digits"):
            raise ConfigError(f"key must be words or digits, got {self.key!r}")


def shuffled(text: str, seed: int) -> str:
    """Return the sentences of a text in an order that the seed determines."""
    sentences = sentences_of(text)
    random.Random(seed).shuffle(sentences)
    return " ".join(sentences)


def draw_keys(plan: PasskeyPlan, words: list[str], chance: random.Random) -> list[str]:
    """Return `plan.choices` different keys; the first is the right one."""
    keys: list[str] = []
    while len(keys) < plan.choices:
        key = (
            " ".join(chance.sample(words, KEY_WORDS))
            if plan.key == "words"
            else "".join(chance.choices("0123456789", k=KEY_DIGITS))
        )
        if key not in keys:
            keys.append(key)
    return keys


def place_of(depth: float, needle_tokens: int, memory_tokens: int, first: int) -> int:
    """Return the needle's first token index: `first` for depth 0, and for depth 1 the index that makes it end the
    memory.

    Raises ConfigError when the memory is too short for the needle.
    """
    if memory_tokens < first + needle_tokens:
        raise ConfigError(
            f"a needle of {needle_tokens} tokens does not fit a memory of {memory_tokens}; ask for at least "
            f"{first + needle_tokens}"
        )
    return first + round(depth * (memory_tokens - needle_tokens - first))


def check_length(memory_tokens: int, chunk_tokens: int) -> None:
    """Raise ConfigError for a memory that does not end with a chunk."""
    if memory_tokens % chunk_tokens:
        raise ConfigError(
            f"a memory of {memory_tokens} tokens does not end with a chunk; ask for a multiple of "
            f"chunk_tokens={chunk_tokens}"
        )


def passkey_trials(
    model: LongMem,
    text: str,
    plan: PasskeyPlan,
    keep_readings: bool = False,
    on_encoded: OnEncoded = ignore_encoded,
) -> Iterator[Trial]:
    """Yield trials by length, depth and number. The filler of the longest memory is encoded once and reused.

    `keep_readings` keeps what the right answers read. `on_encoded` is called after each encoded segment of the filler.

    Raises ConfigError for a memory shorter than the needle, DocumentError, NumericError.
    """
    words = words_of(text, 2 * KEY_WORDS)
    tokenizer = model.tokenizer
    start, question, after = start_of(tokenizer), tokens_of(tokenizer, QUESTION), tokens_of(tokenizer, AFTER)

    def needle_of(key: str) -> Tokens:
        return np.concatenate([question, tokens_of(tokenizer, f" {key}"), after])

    longest = " ".join(sorted(words, key=len)[-KEY_WORDS:])
    for length in plan.lengths:
        check_length(length, model.config.chunk_tokens)
        place_of(0.0, len(needle_of(longest)), length, len(start))
    filler = FillerMemory(model, shuffled(text, plan.seed), max(plan.lengths), on_encoded)
    context = np.concatenate([start, question])
    for length in plan.lengths:
        for depth in plan.depths:
            for trial in range(plan.trials):
                keys = draw_keys(plan, words, random.Random(f"{plan.seed} {length} {depth} {trial}"))
                needle = needle_of(keys[0])
                position = place_of(depth, len(needle), length, len(start))
                asked = question_of(tokenizer, context, QUESTION.strip(), keys, position + len(question))
                with filler.with_needle(needle, position, length) as view:
                    yield from trials_of(model, "passkey", [asked], view, 1, 0, [depth], keep_readings)
