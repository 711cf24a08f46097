# SPDX-License-Identifier: Apache-2.0
"""Documents that teach retrieval: each fact stated once, queried later, and no content of a probe."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.errors import ConfigError
from longmem.synthetic.passkey import QUESTION
from longmem.synthetic.training_texts import training_texts
from longmem.text.language_reference import language_reference

TEXT = language_reference().text


@given(st.integers(0, 10**6))
def test_what_was_said_is_said_again_the_same(seed: int) -> None:
    lists, keys = training_texts(TEXT, 2, 40, seed)
    statements = re.findall(r"The pass key of (the \w+ \w+ [a-z ]+) is ([\w ]+)\.\n", keys.text)
    assert len(statements) == 40
    _repeated_alike(statements)
    lines = [line.split(" ") for line in lists.text.splitlines()]
    assert len(lines) == 160
    _repeated_alike([(word, label) for word, label in lines])
    assert QUESTION.strip() not in keys.text


def _repeated_alike(pairs: Sequence[tuple[str, str]]) -> None:
    first = dict(reversed(pairs))
    assert all(first[name] == value for name, value in pairs)
    assert len(first) < len(pairs)


def test_documents_follow_the_seed() -> None:
    def made(seed: int) -> list[str]:
        return [document.text for document in training_texts(TEXT, 4, 10, seed)]

    assert made(1) == made(1)
    assert not set(made(1)) & set(made(2))


def test_a_text_of_few_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 200 different words, got 2"):
        next(training_texts("yes maybe never. yes maybe", 1, 10))
