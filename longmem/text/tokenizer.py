# SPDX-License-Identifier: Apache-2.0
"""A job's tokenizer, in this process or in a worker: complete documents to tokens. Imports no tokenizer itself."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Int32


class AbstractTokenizer(ABC):
    """Tokenizer of complete documents."""

    @property
    @abstractmethod
    def start_token(self) -> int | None:
        """Token before every document: beginning-of-text, else end-of-text (which ends the previous text)."""

    @property
    @abstractmethod
    def gives_spans(self) -> bool:
        """True for tokenizers of the `tokenizers` library; those written in Python give no character offsets."""

    @abstractmethod
    def sequence(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Return `[start] + tokens of the text`, or only the tokens if the tokenizer has no start token.

        With a start token every token of the text is predicted once. Without one the first token cannot be predicted,
        and counts as unscored. A text that begins with the start token gets no second one. Raises DocumentError if the
        text has no other token.
        """

    @abstractmethod
    def sequence_with_spans(self, text: str) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, "tokens 2"]]:
        """Return `sequence(text)` and the half-open interval of characters of each token.

        The interval of a start token that was put in front is empty. Bytes of one character share its interval.

        Raises DocumentError as `sequence` does. Needs `gives_spans`.
        """

    def beginning(self, text: str, num_tokens: int) -> str:
        """Return the whole characters that the first `num_tokens` tokens of a text stand for; at least one character.

        A start token does not count. Needs `gives_spans`. Raises DocumentError as `sequence` does.
        """
        _, spans = self.sequence_with_spans(text)
        first = 0 if self.start_token is None else 1
        if len(spans) <= first + num_tokens:
            return text
        # a character may be several tokens, which share its interval
        ends = [end for end in range(first + 1, len(spans)) if spans[end, 0] >= spans[end - 1, 1]]
        whole = max((end for end in ends if end <= first + num_tokens), default=min(ends, default=len(spans)))
        return text[: int(spans[whole - 1, 1])]

    def stop(self) -> None:  # noqa: B027 - nothing to interrupt in one process
        """Interrupt calls of other threads, where a call may wait for a worker; they raise ClusterError."""
