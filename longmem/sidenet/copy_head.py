# SPDX-License-Identifier: Apache-2.0
"""Copy head: mixes the tokens that followed places of the memory into the next-token distribution.

    p(y) = (1 − λ_t) · softmax(logits)_y + λ_t · Σ_k a_tk [token after place k = y]

    a_t  = softmax_k( β · s_tk + m[run_tk] − γ · ln distance_tk )        averaged over heads that search alone
    λ_t  = sigmoid( b + w · f_t + MLP(hidden_t, f_t) )

Here s is the inner product of query and key. `run` is the number of equal tokens up to place k and up to t, at most
`copy_match_tokens`. f are the confidence features of the copy distribution (`FEATURES`). The mixture is a probability
distribution, so perplexities are exact. Places where the last tokens repeat are copied from in addition to those that
keys retrieve (see `repeat_copies`).

The design follows the pointer-sentinel mixture (Merity et al. 2017, arXiv 1609.07843), the continuous cache (Grave et
al. 2017, arXiv 1612.04426) and kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172), which have a fixed λ and no runs.

Every initial value below was fitted once on training books with the reference backbone (docs/log.md), so that memory
helps before any training. Training updates all of them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView
from longmem.retrieval.repeats import run_lengths
from longmem.sidenet.copies import Candidates, Copies, candidates_of, certainty
from longmem.sidenet.readers import RetrievedMemory
from longmem.sidenet.repeat_copies import RepeatCopies

FEATURES = ("best similarity", "mean similarity", "largest share", "expected log share", "longest run")
"""Input features of λ: statistics of the similarities, of the copy distribution per distinct token, and of the runs."""
FEATURE_WEIGHTS = (1.0, 0.25, 1.9, 0.45, 1.0)
FEATURE_BIAS = -3.05
COPY_SCALE = 14.0
"""Initial β on cosines. It is smaller than in attention without runs, because runs do part of the work."""
RUN_BIAS = (-2.0, -0.45, 1.15, 1.9, 2.4)
"""Initial m for runs of 0, 1, 2, 3, 4 tokens; longer runs start with the last value."""
AGE = 0.45
"""Initial γ: a place at twice the distance weighs 0.7 times as much."""
MLP_WIDTH = 64


@dataclass(frozen=True)
class CopyCandidates:
    """All candidates that one row may copy from."""

    retrieved: Candidates
    """Candidates that keys retrieved, [tokens, heads, retrieved]."""
    products: Float32[Tensor, "tokens heads retrieved"]
    """Inner products of query and key for the retrieved candidates."""
    repeated: Candidates | None
    """Candidates that repeat the last tokens, [tokens, found]; None where the model copies only retrieved tokens."""

    def rows(self, rows: "slice | Int[Tensor, ' rows']") -> "CopyCandidates":
        """Return the candidates of the tokens that `rows` selects."""
        return CopyCandidates(
            self.retrieved.rows(rows), self.products[rows], self.repeated and self.repeated.rows(rows)
        )


class CopyHead(nn.Module):
    """Module that turns a memory reading into copies. It computes in float32, whatever dtype the model uses."""

    def __init__(self, hidden_size: int, config: LongMemConfig, kv_heads: int, scale: float) -> None:
        """Initialise with the values fitted for the reference backbone.

        Args:
            hidden_size: width of the state that the language-model head reads.
            scale: the backbone's own attention factor, the initial β for products that are not cosines.
        """
        super().__init__()
        self._runs = config.copy_match_tokens
        self._repeat_slots = config.copy_repeats
        # a joint product is the mean over heads, where attention would use the sum
        products = scale * (kv_heads if config.retrieval == "joint" else 1)
        self._cosines = config.keys == "unit"
        self._products_scale = products
        self.log_scale = nn.Parameter(torch.tensor(math.log(COPY_SCALE if self._cosines else products)))
        start = [RUN_BIAS[min(run, len(RUN_BIAS) - 1)] if self._runs else 0.0 for run in range(self._runs + 1)]
        self.run_bias = nn.Parameter(torch.tensor(start))
        self.age = nn.Parameter(torch.tensor(AGE))
        self.feature_weights = nn.Parameter(torch.tensor(FEATURE_WEIGHTS))
        self.bias = nn.Parameter(torch.tensor(FEATURE_BIAS))
        # fixed seed: every worker that opens an untrained model gets equal numbers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            last = nn.Linear(MLP_WIDTH, 1, bias=False)
            self.mlp = nn.Sequential(nn.Linear(hidden_size + len(FEATURES), MLP_WIDTH), nn.GELU(), last)
            self.repeats = RepeatCopies(hidden_size, len(FEATURES), MLP_WIDTH) if self._repeat_slots else None
        nn.init.zeros_(last.weight)

    def forward(
        self,
        reading: RetrievedMemory,
        view: MemoryView,
        hidden: Float[Tensor, "tokens head_input"],
        context: Int[Tensor, " context"],
    ) -> Copies:
        """Return the copies of the reading tokens, which are the last ones of `context`.

        `context` holds the tokens of the segment up to and including the reading ones.
        """
        return self.weigh(self.find(reading, view, len(hidden), context), hidden)

    def find(
        self, reading: RetrievedMemory, view: MemoryView, num_reading: int, context: Int[Tensor, " context"]
    ) -> CopyCandidates:
        """Return candidates for the last `num_reading` tokens of `context`; no weight affects them."""
        index, valid = reading.places.index, reading.places.valid
        context = context.long().to(index.device)
        # the memory, followed by the current segment: its first token came after the newest stored one
        sequence = torch.cat([view.text, context])
        readers = len(sequence) - num_reading + torch.arange(num_reading, device=index.device)
        retrieved = candidates_of(index, valid, run_lengths(sequence, index, readers, self._runs), sequence)
        if not self._repeat_slots:
            return CopyCandidates(retrieved, reading.products, None)
        repeats = view.repeats.find(context, num_reading, self._repeat_slots)
        repeated = candidates_of(repeats.index, repeats.valid, repeats.runs, sequence)
        return CopyCandidates(retrieved, reading.products, repeated)

    def weigh(self, found: CopyCandidates, hidden: Float[Tensor, "tokens head_input"]) -> Copies:
        """Return the copied tokens, their weights and their share of the output."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            tokens, weights, features = self._retrieved(found.retrieved, found.products)
            learned = self.mlp(torch.cat([hidden, features], dim=1))[:, 0]
            copies = Copies(tokens, weights, self.bias + features @ self.feature_weights + learned, None)
            if self.repeats is None:
                return copies
            assert found.repeated is not None, "these were found by a head without repeats"
            return self.repeats.join(copies, found.repeated, hidden, features)

    def _retrieved(self, found: Candidates, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens and weights, both [tokens, copied], and `FEATURES`."""
        valid = found.valid
        logits = self.log_scale.exp() * products + self.run_bias[found.runs] - self.age * found.log_distances
        weights = logits.masked_fill(~valid, -torch.inf).softmax(dim=2)
        tokens, weights = found.tokens.flatten(1), weights.flatten(1) / weights.shape[1]
        similarity = self._similarity(products)
        features = [
            similarity.masked_fill(~valid, -torch.inf).amax(dim=(1, 2)),
            similarity.where(valid, 0.0).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)),
            *certainty(tokens, weights),
            found.runs.amax(dim=(1, 2)).float() / max(self._runs, 1),
        ]
        return tokens, weights, torch.stack(features, dim=1)

    def _similarity(self, products: Tensor) -> Tensor:
        """Return cosines unchanged. Other products are unbounded and are squashed, so that a single large one cannot
        set λ."""
        if self._cosines:
            return products
        return (products * (self._products_scale / COPY_SCALE)).tanh()
