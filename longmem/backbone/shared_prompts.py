# SPDX-License-Identifier: Apache-2.0
"""Rows that begin with the same prompt: the prompt is run once, and each row continues a copy of its cache.

    prompt, one row     │ start, context … │
    rows behind it                         ├ candidate 0 ┤
                                           ├ candidate 1 ┤

Equal to running every row whole, up to rounding. Keys and values of the prompt are copied for each row.
"""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

MIN_SAVED_TOKENS = 512
"""Tokens that are not run again, below which another pass costs more: short rows of many prompts share one."""


def rows_by_prompt(tokens: Int[Tensor, "rows tokens"], prompts: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
    """Return the rows of each distinct prompt, the first `prompts[row]` tokens of a row."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, length in enumerate(prompts):
        found.setdefault(tuple(tokens[row, :length].tolist()), []).append(row)
    return found


def shared_tokens(num_prompt: int, num_rows: int) -> int:
    """Return how many leading tokens `num_rows` rows of one prompt should run once; 0 where sharing does not pay."""
    return num_prompt if (num_rows - 1) * num_prompt >= MIN_SAVED_TOKENS else 0
