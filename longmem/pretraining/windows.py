# SPDX-License-Identifier: Apache-2.0
"""Training windows of the corpus by number, as a function of seed and number only.

    corpus     |  w0  |  w1  |  w2  |  w3  | rest       window w predicts tokens w·n + 1 … (w + 1)·n: each token once
    pass 0        w2     w0     w3     w1               each pass has its own permutation
    number        0      1      2      3       4 …      number // windows is the pass, number % windows the index in it

A resumed run therefore needs only the number of the next window.

Some windows repeat their beginning up to the end. A second copy is predictable only by copying, so a small model learns
to attend to the token after an earlier occurrence (induction heads: Olsson et al. 2022, arXiv:2209.11895). Periods are
short at first, so that copying is learned in few steps, and reach half a window in the middle of the training.
"""

import numpy as np
from jaxtyping import Int64, UInt

from longmem.errors import DocumentError
from longmem.pretraining.config import PretrainingConfig

FIRST_PERIOD = 8
"""Longest period at the start, in tokens."""
GROWTH_SHARE = 0.5
"""Share of the training during which periods grow to half a window."""


class Windows:
    """Training windows of `window_tokens + 1` tokens: inputs, and targets shifted by one.

    `len` and `plain` do not need `config.steps`. Raises DocumentError for a corpus shorter than one window.
    """

    def __init__(self, tokens: UInt[np.ndarray, " tokens"], config: PretrainingConfig, role: str = "training") -> None:
        self._tokens = tokens
        self._config = config
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        if len(self) < 1:
            raise DocumentError(
                f"the {role} data have {len(tokens):,} tokens, expected at least {config.window_tokens + 1:,}, "
                "one window and its last target; give more text"
            )

    def __len__(self) -> int:
        """Return the number of windows of one pass."""
        return (len(self._tokens) - 1) // self._config.window_tokens

    def plain(self, index: int) -> Int64[np.ndarray, " tokens"]:
        """Return window `index` of the corpus unchanged."""
        start = index * self._config.window_tokens
        return self._tokens[start : start + self._config.window_tokens + 1].astype(np.int64)

    def __getitem__(self, number: int) -> Int64[np.ndarray, " tokens"]:
        """Return the `number`-th training window (from 0, over all passes)."""
        window = self.plain(self.index_of(number))
        period = self.period_of(number)
        return window if period is None else repeated(window, period)

    def index_of(self, number: int) -> int:
        """Return the corpus index of the `number`-th training window."""
        number_of_pass, offset = divmod(number, len(self))
        if self._order[0] != number_of_pass:
            random = np.random.default_rng([self._config.seed, number_of_pass])
            self._order = (number_of_pass, random.permutation(len(self)))
        return int(self._order[1][offset])

    def period_of(self, number: int) -> int | None:
        """Return the period in tokens of the `number`-th window; None for most, which do not repeat."""
        # a third number makes these draws independent of the permutations
        random = np.random.default_rng([self._config.seed, number, 1])
        if random.random() >= self._config.repeat_share:
            return None
        longest = self._longest_period(number)
        return int(random.integers(max(1, longest // 4), longest + 1))

    def _longest_period(self, number: int) -> int:
        half = self._config.window_tokens // 2
        growing = GROWTH_SHARE * self._config.num_steps * self._config.rows
        done = min(1.0, number / growing)
        return round(float(min(FIRST_PERIOD, half) ** (1 - done) * half**done))


def repeated(window: Int64[np.ndarray, " tokens"], period: int) -> Int64[np.ndarray, " tokens"]:
    """Return the first `period` tokens of the window, repeated to its length."""
    return np.resize(window[:period], len(window))
