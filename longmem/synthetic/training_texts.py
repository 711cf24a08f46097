# SPDX-License-Identifier: Apache-2.0
"""Documents that teach a SideNet to retrieve: every answer was stated once, much earlier.

Half of the documents hide pass keys in shuffled sentences of a real text and query them later. The other half list
words with labels, each word several times. No name, key or list occurs in a probe.
"""

import random
from collections.abc import Iterator

from longmem.synthetic.vocabulary import sentences_of, words_of
from longmem.types import Document

OWNERS = (
    "inn",
    "ship",
    "mill",
    "church",
    "castle",
    "school",
    "theatre",
    "hospital",
    "station",
    "bank",
    "farm",
    "tower",
)
PLACES = ("in the valley", "near the forest", "at the harbour", "on the hill", "behind the market", "across the lake")
NUM_LABELS = (2, 40)
"""Smallest and largest number of labels of a list."""
RECALL = 0.5
"""Share of statements that repeat an earlier one."""
SENTENCES_BETWEEN = 6
"""Largest number of filler sentences between two statements."""
NUM_WORDS = 200


def training_texts(text: str, num_documents: int, num_statements: int, seed: int = 0) -> Iterator[Document]:
    """Yield documents of `num_statements` statements each, made of the words and sentences of `text`.

    Equal seeds give equal documents. Raises ConfigError for a text of fewer than 200 different words.
    """
    words, sentences = words_of(text, NUM_WORDS), sentences_of(text)
    for index in range(num_documents):
        chance = random.Random(f"{seed} {index}")
        made = (
            _pass_keys(words, sentences, num_statements, chance)
            if index % 2
            else _lists(words, 4 * num_statements, chance)
        )
        yield Document(f"synthetic-{index:04}", made, source=f"seed {seed}")


def _pass_keys(words: list[str], sentences: list[str], num_statements: int, chance: random.Random) -> str:
    said: dict[str, str] = {}
    parts = []
    for _ in range(num_statements):
        parts.extend(chance.choices(sentences, k=chance.randint(1, SENTENCES_BETWEEN)))
        if said and chance.random() < RECALL:
            name = chance.choice(list(said))
        else:
            name = f"the {chance.choice(words)} {chance.choice(OWNERS)} {chance.choice(PLACES)}"
            digits = "".join(chance.choices("0123456789", k=5))
            said.setdefault(name, chance.choice([digits, " ".join(chance.sample(words, 4))]))
        parts.append(f"\n\nThe pass key of {name} is {said[name]}.\n\n")
    return " ".join(parts)


def _lists(words: list[str], num_statements: int, chance: random.Random) -> str:
    chosen = chance.sample(words, len(words))
    count = chance.randint(*NUM_LABELS)
    labels, asked = chosen[:count], chosen[count : count + num_statements // 2]
    label_of = {word: chance.choice(labels) for word in asked}
    return "".join(f"{word} {label_of[word]}\n" for word in chance.choices(asked, k=num_statements))
