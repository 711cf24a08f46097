# SPDX-License-Identifier: Apache-2.0
"""Full causal attention over the longest window that the backbone's positions allow."""

import numpy as np
import torch

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.baselines.windows import separate_windows_logprobs
from longmem.backbone.backbone import Backbone
from longmem.dtypes import to_array


class FullAttention(AbstractBaseline):
    """Consecutive longer windows. A backbone that was never trained on such distances may perform worse."""

    name = "full attention"

    def __init__(self, backbone: Backbone, window_tokens: int, segment_tokens: int) -> None:
        """Open the baseline. `segment_tokens` is the segment length of the other rows, used in the description."""
        backbone.check_segment_tokens(window_tokens)
        self._backbone = backbone
        self._window_tokens = window_tokens
        self._segment_tokens = segment_tokens

    @property
    def description(self) -> str:
        return f"windows of {self._window_tokens} tokens, each alone; segments of other rows: {self._segment_tokens}"

    def logprobs(self, sequence: Sequence) -> LogProbs:
        tokens = torch.from_numpy(np.array(sequence))
        return to_array(separate_windows_logprobs(self._backbone, tokens, self._window_tokens))
