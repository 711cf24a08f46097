# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE tokenizer trained on a corpus: encodes any UTF-8 text without loss.

Texts are split into pieces before a line break that follows a visible character. The word pattern of byte-level BPE
never matches across such a border, so the tokens of the pieces equal the tokens of the whole text. Memory is limited to
a few pieces, and all cores are used.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt32
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from longmem.errors import DocumentError, OutputError

START_TOKEN = "<|endoftext|>"
"""Token before every document, which ends the previous one."""
START_ID = 0
PIECE_CHARACTERS = 2**16
BATCH_PIECES = 64

_BORDER = re.compile(r"(?<=\S)\n")


def pieces(text: str, characters: int) -> Iterator[str]:
    """Yield parts of a text of at least `characters` (the last may be shorter) that are tokenised independently."""
    assert characters > 0, f"pieces of {characters} characters never end"
    start = 0
    while start < len(text):
        border = _BORDER.search(text, start + characters)
        end = border.start() if border else len(text)
        yield text[start:end]
        start = end


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer. The result depends on the texts and their order, but not on the number of threads.

    Raises DocumentError when the texts are too few for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text, PIECE_CHARACTERS)), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise DocumentError(
            f"the training data give a vocabulary of {tokenizer.get_vocab_size():,} entries, the model needs "
            f"{vocab_size:,}: give more text"
        )
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder that `longmem.backbone.new.save_tokenizer` wrote. Raises OutputError."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:
        # the library raises no narrower type for a damaged file
        raise OutputError(f"cannot read {path}: {error}; begin a new job in another folder") from error


def token_parts(tokenizer: Tokenizer, text: str) -> Iterator[UInt32[np.ndarray, " tokens"]]:
    """Yield the tokens of a text in batches of pieces, without a start token."""
    remaining = pieces(text, PIECE_CHARACTERS)
    while batch := list(islice(remaining, BATCH_PIECES)):
        ids = [each.ids for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        yield np.concatenate([np.asarray(each, dtype=np.uint32) for each in ids])
