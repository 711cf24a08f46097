# SPDX-License-Identifier: Apache-2.0
"""Overlapping windows: every token is predicted with at least half a window of context.

Baevski and Auli 2019, "Adaptive Input Representations for Neural Language Modeling" (arXiv 1809.10853), section 4.3,
call it the context window; Press et al. 2021, "Shortformer" (arXiv 2012.15832), section 2, sliding-window evaluation.
It costs two forwards per token and needs no memory.
"""

import numpy as np
import torch

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.baselines.windows import window_logprobs
from longmem.backbone.backbone import Backbone
from longmem.dtypes import to_array


class SlidingWindow(AbstractBaseline):
    """Windows of one segment, half a segment apart; only tokens that the previous window did not predict are scored.

    window 0   ├────scored────┼────scored────┤
    window 1                  ├───context────┼────scored────┤
    last                             ├───context─────┼─scored─┤     shifted back, so that it is whole
    """

    name = "sliding window"

    def __init__(self, backbone: Backbone, window_tokens: int) -> None:
        backbone.check_segment_tokens(window_tokens)
        assert window_tokens % 2 == 0, f"half of a window of {window_tokens} tokens is no whole number"
        self._backbone = backbone
        self._window_tokens = window_tokens
        self._stride = window_tokens // 2

    @property
    def description(self) -> str:
        return f"windows of {self._window_tokens} tokens, {self._stride} apart: at least {self._stride} of context"

    def logprobs(self, sequence: Sequence) -> LogProbs:
        tokens = torch.from_numpy(np.array(sequence))
        num_targets = len(tokens) - 1
        window = min(self._window_tokens, num_targets)
        if window == 0:
            return to_array(torch.empty(0))
        starts = list(range(0, num_targets - window + 1, self._stride))
        if starts[-1] + window < num_targets:
            starts.append(num_targets - window)
        inputs = torch.stack([tokens[start : start + window] for start in starts])
        targets = torch.stack([tokens[start + 1 : start + window + 1] for start in starts])
        scores = window_logprobs(self._backbone, inputs, targets)
        ends = [0, *(start + window for start in starts)]
        return to_array(
            torch.cat([row[end - start :] for row, start, end in zip(scores, starts, ends[:-1], strict=True)])
        )
