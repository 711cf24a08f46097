"""The copy head: what followed places of the memory, mixed into the next-token distribution.

    p(y) = (1 − λ_t) · softmax(logits)_y + λ_t · Σ_k a_tk [token after place k = y]

    a_t  = softmax_k( β · s_tk + m[run_tk] − γ · ln distance_tk )        averaged over heads that search alone
    λ_t  = sigmoid( b + w · f_t + MLP(hidden_t, f_t) )

s: inner product of query and key; run: how many tokens up to place k equal those up to t, at most `copy_match_tokens`;
f: how sure the copy is (`FEATURES`). The mixture is a probability distribution, so perplexities are exact. Places where
the last tokens stand again are copied from beside those that keys retrieve: see `repeat_copies`.

After the pointer-sentinel mixture (Merity et al. 2017, arXiv 1609.07843), the continuous cache (Grave et al. 2017,
arXiv 1612.04426) and kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172), which have a fixed λ and no runs.

Every start value below was fitted once on training books with the reference backbone (docs/log.md), so that memory
helps before any training; training moves all of them.
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
"""Inputs of λ: of the similarities, of the copy distribution per distinct token, of the runs."""
FEATURE_WEIGHTS = (1.0, 0.25, 1.9, 0.45, 1.0)
FEATURE_BIAS = -3.05
COPY_SCALE = 14.0
"""β on cosines: smaller than in attention without runs, because runs do part of the work."""
RUN_BIAS = (-2.0, -0.45, 1.15, 1.9, 2.4)
"""m for runs of 0, 1, 2, 3, 4 tokens; longer ones start like the last."""
AGE = 0.45
"""γ: what lies twice as far back weighs 0.7 times as much."""
MLP_WIDTH = 64


@dataclass(frozen=True)
class CopyCandidates:
    """All that one row may copy from."""

    retrieved: Candidates
    """[tokens, heads, retrieved]"""
    products: Float32[Tensor, "tokens heads retrieved"]
    """Of query and key, for what was retrieved."""
    repeated: Candidates | None
    """[tokens, found]; None where the model copies only what was retrieved."""

    def rows(self, rows: "slice | Int[Tensor, ' rows']") -> "CopyCandidates":
        """Of some of the tokens."""
        return CopyCandidates(
            self.retrieved.rows(rows), self.products[rows], self.repeated and self.repeated.rows(rows)
        )


class CopyHead(nn.Module):
    """Turns a reading into copies. Works in float32 whatever the model computes in."""

    def __init__(self, hidden_size: int, config: LongMemConfig, kv_heads: int, scale: float) -> None:
        """`hidden_size`: of the state that the language-model head reads; `scale`: the backbone's own attention
        factor, where training starts for products that are not cosines."""
        super().__init__()
        self._runs = config.copy_match_tokens
        self._repeat_slots = config.copy_repeats
        # a joint product is a mean over heads where attention would have a sum
        products = scale * (kv_heads if config.retrieval == "joint" else 1)
        self._cosines = config.keys == "unit"
        self._products_scale = products
        self.log_scale = nn.Parameter(torch.tensor(math.log(COPY_SCALE if self._cosines else products)))
        start = [RUN_BIAS[min(run, len(RUN_BIAS) - 1)] if self._runs else 0.0 for run in range(self._runs + 1)]
        self.run_bias = nn.Parameter(torch.tensor(start))
        self.age = nn.Parameter(torch.tensor(AGE))
        self.feature_weights = nn.Parameter(torch.tensor(FEATURE_WEIGHTS))
        self.bias = nn.Parameter(torch.tensor(FEATURE_BIAS))
        # the same numbers in every worker that opens an untrained model
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
        """`context`: tokens of the segment up to and including the reading ones, which are its last."""
        return self.weigh(self.find(reading, view, len(hidden), context), hidden)

    def find(
        self, reading: RetrievedMemory, view: MemoryView, num_reading: int, context: Int[Tensor, " context"]
    ) -> CopyCandidates:
        """Candidates for the last `num_reading` tokens of `context`; no weight decides them."""
        index, valid = reading.places.index, reading.places.valid
        context = context.long().to(index.device)
        # the memory, then the segment that follows it: its first token came after the newest stored one
        sequence = torch.cat([view.text, context])
        readers = len(sequence) - num_reading + torch.arange(num_reading, device=index.device)
        retrieved = candidates_of(index, valid, run_lengths(sequence, index, readers, self._runs), sequence)
        if not self._repeat_slots:
            return CopyCandidates(retrieved, reading.products, None)
        repeats = view.repeats.find(context, num_reading, self._repeat_slots)
        repeated = candidates_of(repeats.index, repeats.valid, repeats.runs, sequence)
        return CopyCandidates(retrieved, reading.products, repeated)

    def weigh(self, found: CopyCandidates, hidden: Float[Tensor, "tokens head_input"]) -> Copies:
        """What is copied, and how much of it."""
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
        """Tokens and weights, both [tokens, copied], and FEATURES."""
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
        """Cosines as they are. Other products have no bound, and one of a thousand must not decide λ alone."""
        if self._cosines:
            return products
        return (products * (self._products_scale / COPY_SCALE)).tanh()
