# SPDX-License-Identifier: Apache-2.0
"""Encodes text as token ids with the backbone's tokenizer."""

import longmem.backbone.one_listing  # noqa: F401 - before anything else of transformers

# isort: split
import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Int32
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longmem.backbone.converted import model_folder
from longmem.backbone.files import find_file, one_line, read_json
from longmem.backbone.loading import refuse_code
from longmem.config import SpecialTokens
from longmem.errors import CheckpointError, DocumentError
from longmem.system.heap import trim_heap
from longmem.text.tokenizer import AbstractTokenizer

LONG_TOKENS = 100_000
"""Tokens from which the heap is trimmed: tokenizers use about 600 bytes per token, and leave half in the heap."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files of a tokenizer; a folder without any of them has none."""


class Tokenizer(AbstractTokenizer):
    """A Hugging Face tokenizer that encodes a complete document as its sequence.

    Raises CheckpointError when the folder has none, or one with more entries than the backbone's vocabulary. Special
    tokens beyond the vocabulary, such as a pad token added for training, are an error only in a text that contains one.
    """

    def __init__(self, source: str | Path, vocab_size: int, special_tokens: SpecialTokens = "parse") -> None:
        """`special_tokens` selects the treatment of special tokens in texts, see LongMemConfig."""
        self._parses = special_tokens == "parse"
        self._vocab_size = vocab_size
        self._tokenizer = _load(source)
        special = {id_ for id_, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        ordinary = set(self._tokenizer.get_vocab().values()) - special
        if not ordinary:
            # for families with a tokenizer class of their own, such as GPT-2, transformers returns an empty tokenizer
            raise CheckpointError(_missing(source))
        largest = max(ordinary | ({self.start_token} if self.start_token is not None else set()))
        if largest >= vocab_size:
            raise CheckpointError(
                f"wrong tokenizer: {source} has token ids up to {largest}, but the backbone embeds only {vocab_size} "
                "ids; use the tokenizer that the backbone was trained with"
            )

    @property
    def start_token(self) -> int | None:
        start = self._tokenizer.bos_token_id
        return int(start) if start is not None else self.end_token

    @property
    def end_token(self) -> int | None:
        end = self._tokenizer.eos_token_id
        return None if end is None else int(end)

    def tokens(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Return the tokens of a text without a start token. Raises DocumentError if there are none."""
        return self._tokens(text, with_spans=False)[0]

    def _tokens(self, text: str, with_spans: bool) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, "spans 2"]]:
        """Return tokens and their character spans, or no spans."""
        encoded = self._encoded(text, return_offsets_mapping=with_spans)
        if not encoded["input_ids"]:
            raise DocumentError("the text gives no tokens: expected at least one; remove the document or check it")
        tokens = np.asarray(encoded["input_ids"], dtype=np.int32)
        spans = np.asarray(encoded.get("offset_mapping", []), dtype=np.int32).reshape(-1, 2)
        del encoded
        if len(tokens) >= LONG_TOKENS:
            trim_heap()
        return tokens, spans

    def cut(self, text: str) -> list[str]:
        """Return the text of each token of `tokens(text)`, empty for later bytes of one character.

        Characters between tokens belong to the one after them. Needs `gives_spans`. Raises DocumentError as `tokens`
        does.
        """
        assert self.gives_spans, "this tokenizer gives no character offsets"
        parts, done = [], 0
        for _, end in self._tokens(text, with_spans=True)[1].tolist():
            parts.append(text[done : max(end, done)])
            done = max(end, done)
        return parts

    def cut_sequence(self, text: str) -> list[str]:
        """Return the text of each token of `sequence(text)`, as `cut` does; empty for a start token put in front."""
        parts = self.cut(text)
        return [""] * (len(self.sequence(text)) - len(parts)) + parts

    def sequence(self, text: str) -> Int32[np.ndarray, " tokens"]:
        return self._begun(self.tokens(text))

    def sequence_with_spans(self, text: str) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, "tokens 2"]]:
        assert self.gives_spans, "this tokenizer gives no character offsets"
        tokens, spans = self._tokens(text, with_spans=True)
        sequence = self._begun(tokens)
        if len(sequence) > len(tokens):
            spans = np.concatenate([np.zeros((1, 2), np.int32), spans])
        return sequence, spans

    @property
    def gives_spans(self) -> bool:
        return bool(self._tokenizer.is_fast)

    def _begun(self, tokens: Int32[np.ndarray, " tokens"]) -> Int32[np.ndarray, " all"]:
        if tokens.tolist() == [self.start_token]:
            raise DocumentError("the text gives no tokens but the start token: expected at least one; remove it")
        return self.begin(tokens)

    def begin(self, tokens: Int32[np.ndarray, " tokens"]) -> Int32[np.ndarray, " all"]:
        """Return tokens with the start token in front, unless there is none or they already begin with it."""
        start = self.start_token
        if start is None or (len(tokens) and tokens[0] == start):
            return tokens
        return np.concatenate([np.asarray([start], dtype=np.int32), tokens])

    def encode(self, text: str, start: bool | None = None) -> list[int]:
        """Return the tokens of a text.

        `start` selects a start token in front (True), none (False), or the tokenizer's own special tokens (None). A
        text that begins with the start token gets no second one.
        """
        if start is None and not self._spells_start(text):
            return self._ids(text, add_special_tokens=True)
        ids = self._ids(text)
        if start and self.start_token is not None and ids[:1] != [self.start_token]:
            ids.insert(0, self.start_token)
        return ids

    def _check_embedded(self, ids: list[int]) -> None:
        if ids and (largest := max(ids)) >= self._vocab_size:
            raise DocumentError(
                f"the text has the special token {self._tokenizer.convert_ids_to_tokens(largest)!r} with id {largest}, "
                f"but the backbone embeds only {self._vocab_size} ids; take it out of the text"
            )

    def _spells_start(self, text: str) -> bool:
        """Return True if a text begins with the start token."""
        if self.start_token is None or not self._parses:
            return False
        spelled = str(self._tokenizer.decode([self.start_token]))
        # some tokenizers include leading spaces in the token
        beginning = text[: len(text) - len(text.lstrip()) + len(spelled)]
        return beginning.endswith(spelled) and self._ids(beginning)[:1] == [self.start_token]

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self._encoded(text, add_special_tokens)["input_ids"]
        return ids

    def _encoded(self, text: str, add_special_tokens: bool = False, return_offsets_mapping: bool = False) -> Any:
        # verbose=False: documents exceed `model_max_length` by design, and the warning would mislead
        encoded = self._tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            split_special_tokens=not self._parses,
            return_offsets_mapping=return_offsets_mapping,
            verbose=False,
        )
        self._check_embedded(encoded["input_ids"])
        return encoded

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def digest(self) -> str:
        """Return the hash of all settings that determine the ids of a text."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        vocabulary = (
            backend.to_str() if backend is not None else json.dumps(sorted(self._tokenizer.get_vocab().items()))
        )
        return xxhash.xxh3_64_hexdigest(f"{self.start_token}:{vocabulary}".encode())

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(str(folder))


def _load(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id, without truncation and padding. Raises CheckpointError."""
    source = model_folder(source)
    settings = find_file(source, TOKENIZER_CONFIG)
    if settings is not None:
        refuse_code(source, TOKENIZER_CONFIG, read_json(settings))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:
        if not any(find_file(source, name) for name in TOKENIZER_FILES):
            raise CheckpointError(_missing(source)) from error
        raise CheckpointError(f"no usable tokenizer in {source}: {one_line(error)}") from error
    # tokenizer.json may hold truncation or padding, which would cut documents and enter the digest
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _missing(source: str | Path) -> str:
    return (
        f"no tokenizer in {source}: expected tokenizer.json, or vocab.json and merges.txt; copy those of the "
        "model that the weights are from"
    )
