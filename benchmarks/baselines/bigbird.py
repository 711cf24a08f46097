# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention over a longer window: local, global and random blocks.

Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences" (arXiv 2007.14062), section 2; made causal: every
block reads itself and earlier blocks, never a later one. The mask is explicit, so that transformers' own attention
runs. It measures the predictions of such attention, not the speed of a sparse kernel.
"""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.baselines.windows import separate_windows_logprobs
from longmem.backbone.backbone import Backbone
from longmem.dtypes import to_array

SEED = 20200728


class BigBird(AbstractBaseline):
    """Backbone trained with full attention, read through a sparse mask without further training."""

    name = "sparse attention"

    def __init__(
        self,
        backbone: Backbone,
        window_tokens: int,
        *,
        block_tokens: int = 32,
        local_blocks: int = 16,
        random_blocks: int = 1,
    ) -> None:
        """Open the baseline. `local_blocks` counts the reading block itself; one global block comes first in every
        window."""
        backbone.check_segment_tokens(window_tokens)
        self._backbone = backbone
        self._window_tokens = window_tokens
        self._settings = block_tokens, local_blocks, random_blocks
        self._allowed = sparse_mask(window_tokens, block_tokens, local_blocks, random_blocks)

    @property
    def description(self) -> str:
        block, local, random = self._settings
        return (
            f"BigBird, causal: windows of {self._window_tokens} tokens in blocks of {block}; each reads {local} local, "
            f"1 global and {random} random ones"
        )

    def logprobs(self, sequence: Sequence) -> LogProbs:
        tokens = torch.from_numpy(np.array(sequence))
        return to_array(separate_windows_logprobs(self._backbone, tokens, self._window_tokens, self._allowed))


def sparse_mask(
    window_tokens: int, block_tokens: int, local_blocks: int, random_blocks: int, seed: int = SEED
) -> Bool[Tensor, "window window"]:
    """Return a mask that is True where position `query` may read position `key`; equal for all layers, heads and
    windows."""
    blocks = -(-window_tokens // block_tokens)
    random = np.random.default_rng(seed)
    readable = torch.zeros((blocks, blocks), dtype=torch.bool)
    for block in range(blocks):
        first_local = max(0, block - local_blocks + 1)
        readable[block, first_local : block + 1] = True
        readable[block, 0] = True
        beyond = np.arange(1, first_local)
        readable[block, random.choice(beyond, min(random_blocks, len(beyond)), replace=False)] = True
    by_token = readable.repeat_interleave(block_tokens, 0).repeat_interleave(block_tokens, 1)
    return by_token[:window_tokens, :window_tokens].tril()
