"""What every baseline must do: give each token of one document its log-probability, once."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float32, Int32

Sequence = Int32[np.ndarray, " tokens"]
"""A document as LongMem reads it: `[start token] + tokens of the text`."""
LogProbs = Float32[np.ndarray, " targets"]
"""Natural-log probability of `sequence[1:]`, so `targets = tokens - 1`."""


class AbstractBaseline(ABC):
    """Scores documents one at a time.

    The result depends on the sequence alone: nothing is kept from one document to the next. The log-probability of a
    token depends on the tokens before it, never on itself's successors, and those of all tokens that could stand in
    one place sum to one.
    """

    name: str
    """Row of the table."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line, with the settings that this instance has."""

    @abstractmethod
    def logprobs(self, sequence: Sequence) -> LogProbs:
        """Log-probability of every token after the first. `sequence` has at least one token."""
