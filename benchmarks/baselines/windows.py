# SPDX-License-Identifier: Apache-2.0
"""Backbone forward over windows of a document, shared by the windowed baselines."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from longmem.backbone.backbone import Backbone

BATCH_TOKENS = 4096
"""Tokens of one forward. A larger batch is not faster on a CPU, and hidden states stay at a few megabytes."""


@torch.no_grad()
def window_logprobs(
    backbone: Backbone,
    tokens: Int[Tensor, "windows window"],
    targets: Int[Tensor, "windows window"],
    allowed: Bool[Tensor, "window window"] | None = None,
) -> Float32[Tensor, "windows window"]:
    """Return the log-probability of `targets[w, i]` given `tokens[w, :i + 1]`; positions start at 0 in every window.

    `allowed[query, key]` replaces the causal mask of transformers. It must be causal itself.
    """
    mask = None if allowed is None else additive_mask(allowed, backbone.dtype)
    parts = []
    for rows in _batches(*tokens.shape):
        hidden = backbone.stack(
            input_ids=tokens[rows].to(backbone.device, torch.long),
            attention_mask=None if mask is None else mask.to(backbone.device),
            use_cache=False,
        ).last_hidden_state
        scores = backbone.target_logprobs(hidden.flatten(0, 1), targets[rows].flatten())
        parts.append(scores.view(hidden.shape[:2]).cpu())
    return torch.cat(parts) if parts else torch.empty(tokens.shape)


def separate_windows_logprobs(
    backbone: Backbone,
    sequence: Int[Tensor, " tokens"],
    window_tokens: int,
    allowed: Bool[Tensor, "window window"] | None = None,
) -> Float32[Tensor, " targets"]:
    """Return log-probabilities over consecutive, independent windows; the last one may be short."""
    tokens, targets = sequence[:-1], sequence[1:]
    whole = len(tokens) // window_tokens * window_tokens
    scores = window_logprobs(
        backbone, tokens[:whole].view(-1, window_tokens), targets[:whole].view(-1, window_tokens), allowed
    )
    rest = len(tokens) - whole
    if rest == 0:
        return scores.flatten()
    short = None if allowed is None else allowed[:rest, :rest]
    last = window_logprobs(backbone, tokens[None, whole:], targets[None, whole:], short)
    return torch.cat([scores.flatten(), last.flatten()])


def additive_mask(allowed: Bool[Tensor, "queries keys"], dtype: torch.dtype) -> Tensor:
    """Return the mask [1, 1, queries, keys] that transformers uses unchanged: 0 where allowed, else the lowest
    number."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[None, None]


def _batches(windows: int, window_tokens: int) -> Iterator[slice]:
    rows = max(1, BATCH_TOKENS // max(1, window_tokens))
    for start in range(0, windows, rows):
        yield slice(start, start + rows)
