# SPDX-License-Identifier: Apache-2.0
"""Words and sentences of a real text, the material of synthetic tests."""

import re

from longmem.errors import ConfigError

WORD = re.compile(r"(?<![\w.])[a-z]{3,12}(?![\w.(])")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def words_of(text: str, at_least: int) -> list[str]:
    """Return the distinct lower-case words of 3 to 12 letters, in alphabetical order.

    Raises ConfigError when there are fewer than `at_least`.
    """
    words = sorted(set(WORD.findall(text)))
    if len(words) < at_least:
        raise ConfigError(f"expected a text of at least {at_least} different words, got {len(words)}; use a longer one")
    return words


def sentences_of(text: str) -> list[str]:
    """Return the sentences, in the order of the text."""
    return [sentence for part in SENTENCE_END.split(text) if (sentence := part.strip())]
