"""Text to token ids, with the tokenizer that belongs to the backbone."""

import json
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int32
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longmem.config import SpecialTokens
from longmem.errors import CheckpointError, DocumentError
from longmem.pages import trim_heap

LONG_TOKENS = 100_000
"""Hugging Face's tokenizers take some 600 bytes for each token while they work, and leave half of it in the heap."""


class Tokenizer:
    """A Hugging Face tokenizer that turns a whole document into its sequence.

    Raises CheckpointError when the folder holds none, or one with more entries than the backbone's vocabulary.
    """

    def __init__(self, source: str | Path, vocab_size: int, special_tokens: SpecialTokens = "parse") -> None:
        """`special_tokens`: what those are that a text spells, see LongMemConfig."""
        self._parses = special_tokens == "parse"
        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source))
        except Exception as error:
            raise CheckpointError(f"no usable tokenizer in {source}: {error}") from error
        largest = max(self._tokenizer.get_vocab().values(), default=-1)
        if largest >= vocab_size:
            raise CheckpointError(
                f"wrong tokenizer: {source} has token ids up to {largest}, but the backbone embeds only {vocab_size} "
                "ids; use the tokenizer that the backbone was trained with"
            )

    @property
    def start_token(self) -> int | None:
        """Token in front of every document: beginning-of-text, else end-of-text (which ends the text before it)."""
        start = self._tokenizer.bos_token_id
        return int(start) if start is not None else self.end_token

    @property
    def end_token(self) -> int | None:
        end = self._tokenizer.eos_token_id
        return None if end is None else int(end)

    def tokens(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Return the tokens of a text alone. Raises DocumentError when it gives none."""
        ids = self._ids(text)
        if not ids:
            raise DocumentError("the text gives no tokens: expected at least one; remove the document or check it")
        tokens = np.asarray(ids, dtype=np.int32)
        del ids
        if len(tokens) >= LONG_TOKENS:
            trim_heap()
        return tokens

    def sequence(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Return `[start] + tokens of the text`, or the tokens alone where the tokenizer has no start token.

        With a start token every token of the text is predicted once; without one the first token cannot be, and is
        counted as unscored. A text that itself begins with the start token gets no second one. Raises DocumentError
        when the text gives no token beside it.
        """
        tokens = self.tokens(text)
        if tokens.tolist() == [self.start_token]:
            raise DocumentError("the text gives no tokens but the start token: expected at least one; remove it")
        return self.begin(tokens)

    def begin(self, tokens: Int32[np.ndarray, " tokens"]) -> Int32[np.ndarray, " all"]:
        """Return tokens with the start token in front, where there is one and they do not begin with it themselves."""
        start = self.start_token
        if start is None or (len(tokens) and tokens[0] == start):
            return tokens
        return np.concatenate([np.asarray([start], dtype=np.int32), tokens])

    def encode(self, text: str, start: bool | None = None) -> list[int]:
        """Return the tokens of a text as the tokenizer by itself gives them, with special tokens where it adds any; or
        with the start token in front, or without, as `start` says. A text that spells the start token gets no second
        one."""
        if start is None and not self._spells_start(text):
            return self._ids(text, add_special_tokens=True)
        ids = self._ids(text)
        if start and self.start_token is not None and ids[:1] != [self.start_token]:
            ids.insert(0, self.start_token)
        return ids

    def _spells_start(self, text: str) -> bool:
        """Return whether a text begins with the start token."""
        if self.start_token is None or not self._parses:
            return False
        spelled = str(self._tokenizer.decode([self.start_token]))
        # some tokenizers take spaces in front as part of the token
        beginning = text[: len(text) - len(text.lstrip()) + len(spelled)]
        return beginning.endswith(spelled) and self._ids(beginning)[:1] == [self.start_token]

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        # verbose=False: a document is longer than `model_max_length` by design, the warning would mislead
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=not self._parses, verbose=False
        )
        ids: list[int] = encoded["input_ids"]
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def digest(self) -> str:
        """Hash of all that decides how text becomes ids."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        vocabulary = (
            backend.to_str() if backend is not None else json.dumps(sorted(self._tokenizer.get_vocab().items()))
        )
        return xxhash.xxh3_64_hexdigest(f"{self.start_token}:{vocabulary}".encode())

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(str(folder))
