# SPDX-License-Identifier: Apache-2.0
"""A new tokenizer: deterministic, lossless, and equal tokens for pieces and for the whole text."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from longmem.backbone.new import save_tokenizer
from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import DocumentError, OutputError
from longmem.pretraining import tokenizer as module
from longmem.pretraining.tokenizer import START_TOKEN, load_tokenizer, pieces, token_parts, train_tokenizer
from tests.texts import prose

VOCABULARY = 320
LINES = st.lists(st.text(max_size=12) | st.sampled_from(["", " ", "word", "x\r", "\t", "'s"]), max_size=12)


@pytest.fixture(scope="module")
def raw() -> RawTokenizer:
    return train_tokenizer([prose(0, 400), prose(1, 400)], VOCABULARY)


@pytest.fixture(scope="module")
def folder(raw: RawTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    save_tokenizer(raw, START_TOKEN, 128, path)
    return path


@pytest.fixture(scope="module")
def saved(folder: Path) -> Tokenizer:
    return Tokenizer(folder, VOCABULARY)


@given(text=st.text(min_size=1, max_size=60))
def test_any_text_comes_back(saved: Tokenizer, text: str) -> None:
    sequence = saved.sequence(text)
    assert sequence[0] == saved.start_token == saved.end_token == 0
    assert saved.decode(sequence.tolist()) == text


def test_words_of_the_corpus_are_few_tokens(saved: Tokenizer) -> None:
    text = prose(2, 100)
    assert len(saved.sequence(text)) < len(text.encode()) / 2


@given(lines=LINES, characters=st.integers(1, 20))
def test_pieces_give_the_tokens_of_the_whole(raw: RawTokenizer, lines: list[str], characters: int) -> None:
    text = "\n".join(lines)
    cut = list(pieces(text, characters))
    assert "".join(cut) == text
    assert [token for piece in cut for token in raw.encode(piece).ids] == raw.encode(text).ids


def test_a_text_is_cut_where_it_can_be() -> None:
    assert list(pieces("ab\ncd\n\nef \ngh", 1)) == ["ab", "\ncd", "\n\nef \ngh"]
    assert list(pieces("no line break", 3)) == ["no line break"]


def test_parts_are_the_sequence_that_scoring_sees(
    folder: Path, saved: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = prose(3, 300)
    monkeypatch.setattr(module, "BATCH_PIECES", 2)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 100)
    parts = list(token_parts(load_tokenizer(folder), text))
    assert len(parts) > 3
    assert np.concatenate(parts).tolist() == saved.sequence(text)[1:].tolist()


def test_the_same_texts_give_the_same_tokenizer(raw: RawTokenizer) -> None:
    assert train_tokenizer([prose(0, 400), prose(1, 400)], VOCABULARY).to_str() == raw.to_str()


def test_too_little_text_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"a vocabulary of 2\d\d entries, the model needs 320: give more text"):
        train_tokenizer(["few words"], VOCABULARY)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(OutputError, match="begin a new job"):
        load_tokenizer(tmp_path)
