# SPDX-License-Identifier: Apache-2.0
"""A training-free neural cache over the memory that LongMem stores: similar keys point to the tokens that followed
them.

Grave, Joulin and Usunier 2017, "Improving Neural Language Models with a Continuous Cache" (arXiv 1612.04426), with the
top-k and the mixture of Khandelwal et al. 2020, "Generalization through Memorization: Nearest Neighbor Language
Models" (arXiv 1911.00172), section 2.

    p(w) = (1 - λ) · p_backbone(w) + λ · Σ_{j in top k, token j+1 = w} softmax_j(β · k̂_t · k̂_j)

k̂ are the position-free keys of one layer, all heads joined, less the mean of the memory's keys, at unit length. j runs
over the document's tokens before the current segment, as far back as LongMem's memory reaches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from longmem.backbone.backbone import Backbone
from longmem.dtypes import to_array
from longmem.memory.sliding_window import SlidingWindow


@dataclass(frozen=True)
class PointerWeights:
    """Weights λ and β of the module's formula. The defaults are the best of the grid on 8 validation books, 20,480
    tokens of each, for keys of layer 7 of `novels-8m`; `python -m benchmarks fit-caches` makes it again.
    """

    share: float = 0.15
    sharpness: float = 20.0


@dataclass(frozen=True)
class Retrieved:
    """Backbone scores of one segment, and the tokens its positions retrieved. No columns where the memory was empty."""

    backbone: Float32[Tensor, " targets"]
    similarities: Float32[Tensor, "targets found"]
    hits: Bool[Tensor, "targets found"]
    """True where the token after the found position is the target."""


class NeuralCache(AbstractBaseline):
    """Baseline that uses LongMem's memory without its SideNet."""

    name = "neural cache"

    def __init__(
        self,
        backbone: Backbone,
        segment_tokens: int,
        layer: int,
        weights: PointerWeights | None = None,
        *,
        memory_tokens: int = 65_536,
        top_k: int = 64,
    ) -> None:
        backbone.check_segment_tokens(segment_tokens)
        self._backbone = backbone
        self._segment_tokens = segment_tokens
        self._layer = layer
        self._weights = weights or PointerWeights()
        self._window = SlidingWindow(memory_tokens, segment_tokens)
        self._top_k = top_k

    @property
    def description(self) -> str:
        return (
            f"kNN over keys of layer {self._layer}, top {self._top_k} of {self._window.memory_tokens:,} tokens, "
            f"λ {self._weights.share:g}, β {self._weights.sharpness:g}"
        )

    def logprobs(self, sequence: Sequence) -> LogProbs:
        parts = [mix(retrieved, self._weights) for retrieved in self.retrieve(sequence)]
        return to_array(torch.cat(parts) if parts else torch.empty(0))

    @torch.no_grad()
    def retrieve(self, sequence: Sequence) -> Iterator[Retrieved]:
        """Yield, segment by segment, everything that does not depend on the weights."""
        tokens = torch.from_numpy(np.array(sequence)).to(self._backbone.device, torch.long)
        inputs, targets = tokens[:-1], tokens[1:]
        width = self._backbone.shape.kv_heads * self._backbone.shape.head_dim
        memory = torch.empty((len(inputs), width), dtype=torch.float16, device=tokens.device)
        for start in range(0, len(inputs), self._segment_tokens):
            part = slice(start, start + self._segment_tokens)
            output = self._backbone.forward(inputs[None, part], self._layer, self._backbone.num_layers)
            memory[part] = output.keys[0].flatten(1).half()
            positions = self._window.before(start)
            past = slice(positions.start, positions.stop)
            similarities, places = nearest(memory[part].float(), memory[past].float(), self._top_k)
            # position j of the memory was followed by target j; the last one by this segment's first token
            hits = targets[past][places] == targets[part, None]
            yield Retrieved(self._backbone.target_logprobs(output.hidden[0], targets[part]), similarities, hits)


def nearest(
    queries: Float[Tensor, "queries width"], keys: Float[Tensor, "keys width"], top_k: int
) -> tuple[Float[Tensor, "queries found"], Int64[Tensor, "queries found"]]:
    """Return cosine similarities and indices of the most similar keys, both centred by the mean key."""
    mean = keys.mean(dim=0) if len(keys) else keys.new_zeros(keys.shape[1])
    queries, keys = (torch.nn.functional.normalize(vectors - mean, dim=1) for vectors in (queries, keys))
    best = (queries @ keys.T).topk(min(top_k, len(keys)), dim=1)
    return best.values, best.indices


def mix(retrieved: Retrieved, weights: PointerWeights) -> Float32[Tensor, " targets"]:
    """Return the mixture of the module's formula, computed in float64. An empty memory gives the backbone's scores."""
    if retrieved.similarities.shape[1] == 0:
        return retrieved.backbone
    attention = (retrieved.similarities.double() * weights.sharpness).softmax(dim=1)
    pointer: Float64[Tensor, " targets"] = (attention * retrieved.hits).sum(dim=1)
    mixture = (1 - weights.share) * retrieved.backbone.double().exp() + weights.share * pointer
    return mixture.clamp(min=torch.finfo(torch.float64).tiny).log().float()


def fit(retrieved: Iterable[Retrieved]) -> tuple[PointerWeights, float]:
    """Return the weights with the least mean negative log-probability per token on validation books, and that mean.

    Searches a grid over both weights, one segment in memory at a time.
    """
    grid = product((0.05, 0.1, 0.15, 0.2, 0.25, 0.3), (10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0))
    choices = [PointerWeights(share, sharpness) for share, sharpness in grid]
    nats, num_targets = np.zeros(len(choices)), 0
    for segment in retrieved:
        nats -= [float(mix(segment, weights).double().sum()) for weights in choices]
        num_targets += len(segment.backbone)
    best = int(nats.argmin())
    return choices[best], float(nats[best] / num_targets)
