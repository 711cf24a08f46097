# SPDX-License-Identifier: Apache-2.0
"""Probe of a backbone without training: suitability for memory, and the best layer to store.

repeat loss        nats per token on random tokens at first and second reading: a backbone that can copy from its
                   context has a far lower loss at the second
induction score    per layer, the largest share of a head's attention that goes from a repeated token to the token
                   after its first occurrence (Olsson et al. 2022, arXiv 2209.11895)
cache gain         per layer, the change of perplexity when a continuous cache over that layer's keys is mixed in
                   (Grave et al. 2017, arXiv 1612.04426): how well keys of this layer find the right positions
continuations      share of predicted tokens that followed the same token somewhere in the document's past, and the
                   share that the layer's best positions found
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from longmem.backbone.backbone import Backbone
from longmem.backbone.hooks import projected
from longmem.errors import DocumentError

PLACES = 64
SCALES = (10.0, 20.0, 30.0)
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2)
"""Grid of the cache: factors on cosines (`SCALES`) and shares of the output (`SHARES`)."""
REPEATED_TOKENS = 64
REPEATS = 8
CAN_COPY_NATS = 1.0
"""Drop of the loss, in nats, from first to second reading above which a backbone copies from its context."""


@dataclass(frozen=True)
class LayerProbe:
    """Measurements of one layer whose keys could be stored."""

    layer: int
    induction: float
    """Induction score in [0, 1]."""
    cache_gain: float
    """Relative change of perplexity (-0.2 is 20% lower) for the best scale and share of the grid."""
    found: float
    """Share of tokens that are among the continuations of the best positions."""


@dataclass(frozen=True)
class BackboneProbe:
    """Measurements of one backbone."""

    first_loss: float
    second_loss: float
    in_memory: float
    """Share of tokens that followed the same token before, so that a memory could predict them."""
    perplexity: float
    num_tokens: int
    layers: list[LayerProbe]
    reads_all_layers: bool
    """True if the backbone can read a memory at every layer: it adds no positions to its embeddings."""

    @property
    def best(self) -> LayerProbe:
        """Layer with the largest cache gain."""
        return min(self.layers, key=lambda layer: layer.cache_gain)

    @property
    def copies(self) -> bool:
        """True if the backbone copies from its own context."""
        return self.first_loss - self.second_loss > CAN_COPY_NATS


@torch.no_grad()
def probe_backbone(
    backbone: Backbone, sequence: Int32[np.ndarray, " tokens"], segment_tokens: int, seed: int = 0
) -> BackboneProbe:
    """Measure on one document's sequence. Raises DocumentError when it has fewer than two full segments."""
    num_segments = (len(sequence) - 1) // segment_tokens
    if num_segments < 2:
        raise DocumentError(
            f"a probe needs a text of at least {2 * segment_tokens + 1} tokens (two segments), got {len(sequence)}"
        )
    tokens = torch.from_numpy(sequence[: num_segments * segment_tokens + 1].astype(np.int64))
    first_loss, second_loss, induction = _repeats(backbone, seed)
    logprobs, keys = _read(backbone, tokens, segment_tokens)
    layers = []
    for layer, layer_keys in enumerate(keys):
        gain, found = _cache(layer_keys, tokens, logprobs, segment_tokens)
        layers.append(LayerProbe(layer, induction[layer], gain, found))
    return BackboneProbe(
        first_loss=first_loss,
        second_loss=second_loss,
        in_memory=_in_memory(tokens, segment_tokens),
        perplexity=math.exp(-float(logprobs.mean())),
        num_tokens=len(logprobs),
        layers=layers,
        reads_all_layers=not backbone.family.keys_have_positions,
    )


def _repeats(backbone: Backbone, seed: int) -> tuple[float, float, list[float]]:
    """Return the loss on random tokens at first and second reading, and the induction score of each layer."""
    length = min(REPEATED_TOKENS, (backbone.max_tokens or 2 * REPEATED_TOKENS) // 2)
    random = torch.Generator().manual_seed(seed)
    once = torch.randint(backbone.vocab_size, (REPEATS, length), generator=random)
    tokens = torch.cat([once, once], dim=1).to(backbone.device)
    implementation = backbone.model.config._attn_implementation
    # only this implementation returns attention weights
    backbone.model.set_attn_implementation("eager")
    try:
        output = backbone.model(input_ids=tokens, output_attentions=True)
    finally:
        backbone.model.set_attn_implementation(implementation)
    losses = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    # the second copy's token t was first at t - length; what followed it then is at t - length + 1
    reader = torch.arange(length, 2 * length - 1, device=tokens.device)
    induction = [
        float(weights[:, :, reader, reader - length + 1].float().mean(dim=(0, 2)).max())
        for weights in output.attentions
    ]
    return float(losses[:, : length - 1].mean()), float(losses[:, length:].mean()), induction


def _read(
    backbone: Backbone, tokens: Int64[Tensor, " tokens"], segment_tokens: int
) -> tuple[Float[Tensor, " targets"], list[Float[Tensor, "targets width"]]]:
    """Return log-probabilities of all targets, and each layer's unit keys of the tokens before them."""
    logprobs: list[Tensor] = []
    keys: list[list[Tensor]] = [[] for _ in backbone.layers]
    attentions = [backbone.family.attention_of(block) for block in backbone.layers]
    for start in range(0, len(tokens) - 1, segment_tokens):
        part = tokens[None, start : start + segment_tokens].to(backbone.device)
        with ExitStack() as hooks:
            latest = [hooks.enter_context(projected(backbone.family, module, backbone.shape)) for module in attentions]
            hidden = backbone.stack(input_ids=part).last_hidden_state
            for layer, projections in enumerate(latest):
                keys[layer].append(projections()[1][0].flatten(1).float())
        targets = tokens[start + 1 : start + 1 + segment_tokens]
        logprobs.append(backbone.target_logprobs(hidden[0], targets))
    return torch.cat(logprobs), [_unit(torch.cat(parts)) for parts in keys]


def _unit(keys: Tensor) -> Tensor:
    return torch.nn.functional.normalize(keys - keys.mean(dim=0), dim=1)


def _cache(
    keys: Float[Tensor, "targets width"],
    tokens: Int64[Tensor, " tokens"],
    logprobs: Float[Tensor, " targets"],
    segment_tokens: int,
) -> tuple[float, float]:
    """Return the best relative change of perplexity over the grid, and the share of tokens that were found."""
    grid = [(scale, share) for scale in SCALES for share in SHARES]
    nats = torch.zeros(len(grid), dtype=torch.float64)
    found = 0
    for start in range(0, len(logprobs), segment_tokens):
        own, targets = logprobs[start : start + segment_tokens], tokens[start + 1 : start + 1 + segment_tokens]
        # the newest key's continuation is the segment's own first token, so it is excluded
        past = keys[: max(start - 1, 0)]
        if len(past) == 0:
            nats -= float(own.double().sum())
            continue
        best = (keys[start : start + segment_tokens] @ past.T).topk(min(PLACES, len(past)), dim=1)
        hits = tokens.to(keys.device)[best.indices + 1] == targets.to(keys.device)[:, None]
        found += int(hits.any(dim=1).sum())
        for index, (scale, share) in enumerate(grid):
            copied = ((best.values * scale).softmax(dim=1) * hits).sum(dim=1)
            nats[index] -= float(((1 - share) * own.exp() + share * copied).double().log().sum())
    change = float(nats.min()) / len(logprobs) + float(logprobs.double().mean())
    return math.expm1(change), found / len(logprobs)


def _in_memory(tokens: Int64[Tensor, " tokens"], segment_tokens: int) -> float:
    """Return the share of targets that followed the same token in an earlier segment."""
    pairs = list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    seen: set[tuple[int, int]] = set()
    known = 0
    for start in range(0, len(pairs), segment_tokens):
        segment = pairs[start : start + segment_tokens]
        known += sum(pair in seen for pair in segment)
        seen.update(segment)
    return known / len(pairs)
