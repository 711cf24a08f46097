# SPDX-License-Identifier: Apache-2.0
"""Contract of all baselines: give each token of one document its log-probability, once."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float32, Int32

Sequence = Int32[np.ndarray, " tokens"]
"""Token ids of a document in LongMem's form: `[start token] + tokens of the text`."""
LogProbs = Float32[np.ndarray, " targets"]
"""Natural-log probability of `sequence[1:]`, so `targets = tokens - 1`."""


class AbstractBaseline(ABC):
    """Scorer of one document at a time.

    The result depends on the sequence alone: no state is kept between documents. The log-probability of a token depends
    only on the tokens before it. At each position the probabilities of all vocabulary tokens sum to one.
    """

    name: str
    """Row name in the table."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One-line description with the settings of this instance."""

    @abstractmethod
    def logprobs(self, sequence: Sequence) -> LogProbs:
        """Return the log-probability of every token after the first. `sequence` has at least one token."""
