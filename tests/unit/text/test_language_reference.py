# SPDX-License-Identifier: Apache-2.0
"""The document that exists on every machine."""

from pydoc_data.topics import topics

from longmem.text.language_reference import LANGUAGE_REFERENCE_ID, language_reference


def test_it_is_long_and_holds_every_topic_of_help() -> None:
    document = language_reference()
    assert document.id == LANGUAGE_REFERENCE_ID
    assert document.source == "pydoc_data.topics"
    assert document.num_bytes > 300_000
    assert document.num_words > 30_000
    positions = [document.text.find(topics[name].strip()) for name in sorted(topics)]
    assert -1 not in positions
    assert document.text == document.text.strip()


def test_it_is_the_same_each_time() -> None:
    assert language_reference() == language_reference()
    assert len(language_reference().digest) == 32
