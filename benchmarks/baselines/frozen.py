# SPDX-License-Identifier: Apache-2.0
"""Backbone on LongMem's own segments, without SideNet and memory: the reference of every reported change."""

import numpy as np
import torch

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.baselines.windows import separate_windows_logprobs
from longmem.backbone.backbone import Backbone
from longmem.dtypes import to_array


class FrozenBackbone(AbstractBaseline):
    """Baseline that reads each segment alone. Equals LongMem's `backbone_logprobs`, several segments at a time."""

    name = "frozen backbone"

    def __init__(self, backbone: Backbone, segment_tokens: int) -> None:
        backbone.check_segment_tokens(segment_tokens)
        self._backbone = backbone
        self._segment_tokens = segment_tokens

    @property
    def description(self) -> str:
        return f"segments of {self._segment_tokens} tokens, each alone"

    def logprobs(self, sequence: Sequence) -> LogProbs:
        tokens = torch.from_numpy(np.array(sequence))
        return to_array(separate_windows_logprobs(self._backbone, tokens, self._segment_tokens))
