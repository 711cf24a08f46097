# SPDX-License-Identifier: Apache-2.0
"""Segment-level recurrence: every layer also reads its own keys and values of the previous segment.

Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context" (arXiv 1901.02860), section
3.2. Information propagates from segment to segment, one layer higher each time. Relative positions come from RoPE:
cached keys keep the rotation of their document position, so only position differences matter. Beyond 300,000 tokens a
float32 angle is off by up to 0.01, less than the rounding of bfloat16.

A Transformer-XL is trained with this recurrence; this backbone was not. With `same_length` each position reads exactly
the last `segment_tokens` positions, and no distance exceeds those of its training. The name is that of the switch in
the authors' code. Without it a position also reads the whole last segment, up to twice as far.
"""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import DynamicCache

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.baselines.windows import additive_mask
from longmem.backbone.backbone import Backbone
from longmem.dtypes import to_array
from longmem.errors import ConfigError


class TransformerXL(AbstractBaseline):
    """Baseline that reads one segment at a time, with a transformers cache that holds one segment."""

    name = "recurrence"

    def __init__(self, backbone: Backbone, segment_tokens: int, *, same_length: bool = True) -> None:
        if not hasattr(backbone.stack, "rotary_emb"):
            raise ConfigError(f"recurrence needs rotary positions, {backbone.family.stack} of {backbone.name} has none")
        backbone.check_segment_tokens(segment_tokens)
        self._backbone = backbone
        self._segment_tokens = segment_tokens
        self._same_length = same_length

    @property
    def description(self) -> str:
        reach = f"{self._segment_tokens} positions back" if self._same_length else "all of it"
        return f"Transformer-XL: keys and values of the segment of {self._segment_tokens} before, {reach}"

    @torch.no_grad()
    def logprobs(self, sequence: Sequence) -> LogProbs:
        tokens = torch.from_numpy(np.array(sequence)).to(self._backbone.device, torch.long)
        inputs, targets = tokens[:-1], tokens[1:]
        scores, cache = [], DynamicCache()
        for start in range(0, len(inputs), self._segment_tokens):
            part = slice(start, start + self._segment_tokens)
            num_tokens, past_tokens = len(inputs[part]), cache.get_seq_length()
            allowed = recurrence_mask(num_tokens, past_tokens, self._segment_tokens if self._same_length else None)
            hidden = self._backbone.stack(
                input_ids=inputs[None, part],
                attention_mask=additive_mask(allowed, self._backbone.dtype).to(tokens.device),
                position_ids=torch.arange(start, start + num_tokens, device=tokens.device)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            scores.append(self._backbone.target_logprobs(hidden[0], targets[part]))
            cache = _last_tokens(cache, num_tokens)
        return to_array(torch.cat(scores) if scores else torch.empty(0))


def recurrence_mask(num_tokens: int, past_tokens: int, reach: int | None) -> Bool[Tensor, "tokens keys"]:
    """Return the mask for keys `[past | segment]`: all at or before the query; with `reach` only the last `reach`
    keys."""
    queries = torch.arange(past_tokens, past_tokens + num_tokens)[:, None]
    distance = queries - torch.arange(past_tokens + num_tokens)
    return (distance >= 0) & (distance < (reach or past_tokens + num_tokens))


def _last_tokens(cache: DynamicCache, num_tokens: int) -> DynamicCache:
    kept = DynamicCache()
    for index, layer in enumerate(cache.layers):
        kept.update(layer.keys[:, :, -num_tokens:], layer.values[:, :, -num_tokens:], index)
    return kept
