# SPDX-License-Identifier: Apache-2.0
"""Tokens on disk: all documents in order with the start token between them, written atomically."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from longmem.errors import DocumentError, OutputError
from longmem.pretraining.corpus import CorpusFacts, open_corpus, read_texts, write_corpus
from longmem.pretraining.tokenizer import START_TOKEN

TEXTS = ["one\ntwo\nthree", "naïve"]


def byte_level(vocab_size: int) -> Tokenizer:
    """Return a tokenizer with one token per byte: the start token is 0, bytes follow, and unused names fill the
    rest."""
    entries = [START_TOKEN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += [f"<{number}>" for number in range(vocab_size - len(entries))]
    tokenizer = Tokenizer(models.BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def expected(limit: int | None = None) -> list[int]:
    tokenizer = byte_level(257)
    return [token for text in TEXTS for token in (0, *tokenizer.encode(text).ids[:limit])]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")])
def test_documents_lie_one_after_another(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    write_corpus(tmp_path / "corpus", "train", iter(TEXTS), byte_level(vocab_size))
    corpus = open_corpus(tmp_path / "corpus", "train")
    assert corpus is not None
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.tolist() == expected()
    assert corpus.facts == CorpusFacts(dtype=dtype, tokens=21, documents=2, text_bytes=19)
    assert corpus.tokens.dtype == dtype


def test_only_the_first_tokens_of_each_document(tmp_path: Path) -> None:
    write_corpus(tmp_path, "valid", iter(TEXTS), byte_level(257), limit_tokens=4)
    corpus = open_corpus(tmp_path, "valid")
    assert corpus is not None
    assert corpus.tokens.tolist() == expected(4)


def test_a_corpus_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield TEXTS[0]
        raise KeyboardInterrupt

    write_corpus(tmp_path, "train", iter(TEXTS), byte_level(257))
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, "train", texts(), byte_level(257))
    assert open_corpus(tmp_path, "train") is None


def test_a_damaged_corpus_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, "train", iter(TEXTS), byte_level(257))
    path = tmp_path / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(OutputError, match=r"has 20 tokens, expected 21; delete .*train\.json to tokenise again"):
        open_corpus(tmp_path, "train")
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(OutputError, match="cannot read"):
        open_corpus(tmp_path, "train")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*corpus"):
        write_corpus(tmp_path / "corpus", "train", iter(TEXTS), byte_level(257))


def test_texts_come_in_order_and_a_bad_one_is_named(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    assert list(read_texts([str(tmp_path)], "training")) == ["text of a", "text of b"]
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(DocumentError, match=r"training data: .*c\.txt.* not valid UTF-8"):
        list(read_texts([str(tmp_path)], "training"))
