# SPDX-License-Identifier: Apache-2.0
"""Overlapping windows of a fixed length, in which the backbone alone reads a text; `window_scores` scores them.

    sequence   0 ········ window ·· +stride ·· +2 stride · end
    window 0   ├─ reads, scores all ┤
    window 1        ├── context ──┤ scores ┤
    window 2               ├── context ──┤ scores ┤           each token is scored once

This is the loop of the guide "Perplexity of fixed-length models" of Hugging Face transformers: windows begin at
multiples of the stride, and the last one is shorter. A window reads `window` tokens and predicts the token after each;
in the guide's words `max_length` is `window + 1`. So no token is lost at the borders where stride equals window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from longmem.errors import ConfigError


@dataclass(frozen=True)
class EvaluationWindow:
    """Tokens of one forward, and the targets that it scores: those after the last `len(targets)` tokens."""

    index: int
    start_token: int
    """Position in the sequence of the first token that is read."""
    tokens: Int32[np.ndarray, " tokens"]
    targets: Int32[np.ndarray, " targets"]

    @property
    def first_target(self) -> int:
        """Position of the first scored target in the sequence."""
        return self.start_token + len(self.tokens) - len(self.targets) + 1


def check_window(window: int, stride: int) -> None:
    """Raise ConfigError unless 1 ≤ stride ≤ window."""
    if window < 1:
        raise ConfigError(f"the evaluation window must be at least 1 token, got {window}; a usual one is 1,024")
    if not 1 <= stride <= window:
        raise ConfigError(
            f"the stride must be from 1 to the evaluation window of {window:,} tokens, got {stride:,}: a longer one "
            f"would leave tokens out; give {max(1, window // 2):,}, or {window:,} for windows without overlap"
        )


def check_window_fits(window: int, max_tokens: int | None, name: str) -> None:
    """Raise ConfigError if a window is longer than the `max_tokens` positions of backbone `name` (None: no limit)."""
    if max_tokens is not None and window > max_tokens:
        raise ConfigError(
            f"the evaluation window must be at most {max_tokens:,} tokens for backbone {name} (its position limit), "
            f"got {window:,}"
        )


def num_windows(num_targets: int, window: int, stride: int) -> int:
    """Return the number of windows that score a document of `num_targets` predicted tokens."""
    return 0 if num_targets < 1 else 1 + max(0, -(-(num_targets - window) // stride))


def cut_windows(sequence: Int32[np.ndarray, " tokens"], window: int, stride: int) -> Iterator[EvaluationWindow]:
    """Yield the windows of a sequence in order. Every token but the first is a target exactly once.

    Raises ConfigError for a stride beyond the window.
    """
    check_window(window, stride)
    last = len(sequence) - 1
    for index in range(num_windows(last, window, stride)):
        start = index * stride
        end = min(start + window, last)
        first = start + 1 if index == 0 else start + window - stride + 1
        yield EvaluationWindow(index, start, _own(sequence[start:end]), _own(sequence[first : end + 1]))


def _own(part: np.ndarray) -> np.ndarray:
    """Return a read-only copy, which is sent to a worker without the rest of the sequence."""
    part = part.copy()
    part.flags.writeable = False
    return part
