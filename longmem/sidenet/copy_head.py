"""The copy head: what followed the retrieved places, mixed into the next-token distribution.

    p(y) = (1 − λ_t) · softmax(logits)_y + λ_t · Σ_k a_tk [token after place k = y]

    a_t  = softmax_k( β · s_tk + m[run_tk] − γ · ln distance_tk )        averaged over heads that search alone
    λ_t  = sigmoid( b + w · f_t + MLP(hidden_t, f_t) )

s: inner product of query and key; run: how many tokens up to place k equal those up to t, at most `copy_match_tokens`;
f: how sure the copy is (`FEATURES`). The mixture is a probability distribution, so perplexities are exact.

After the pointer-sentinel mixture (Merity et al. 2017, arXiv 1609.07843), the continuous cache (Grave et al. 2017,
arXiv 1612.04426) and kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172), which have a fixed λ and no runs.

Every start value below was fitted once on training books with the reference backbone (docs/log.md), so that memory
helps before any training; training moves all of them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView
from longmem.sidenet.places import slots_in_order
from longmem.sidenet.reading import Reading

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
class Copies:
    """One row's copy distribution and its share of the output."""

    tokens: Int64[Tensor, "tokens copied"]
    """The token after each retrieved place, in every head's slots."""
    weights: Float32[Tensor, "tokens copied"]
    """Sum to one; zero for places that are not there."""
    share_logits: Float32[Tensor, " tokens"]
    """λ = sigmoid of these."""

    @property
    def share(self) -> Float32[Tensor, " tokens"]:
        return self.share_logits.sigmoid()

    def mix_targets(
        self, logprobs: Float32[Tensor, " targets"], targets: Int[Tensor, " targets"]
    ) -> Float32[Tensor, " targets"]:
        """Log-probability of target i under the mixture of position i; `logprobs` are the model's own."""
        count = len(targets)
        hits = self.tokens[:count] == targets.to(self.tokens.device)[:, None]
        copied = (self.weights[:count] * hits).sum(dim=1)
        return self._mix(logprobs, copied, self.share_logits[:count])

    def mix_logits(self, logits: Float32[Tensor, "tokens vocabulary"]) -> Float32[Tensor, "tokens vocabulary"]:
        """Log-probabilities of the whole vocabulary under the mixture."""
        copied = torch.zeros_like(logits).scatter_add_(1, self.tokens, self.weights)
        return self._mix(logits.log_softmax(dim=1), copied, self.share_logits[:, None])

    def rows(self, rows: slice) -> "Copies":
        """Of some of the tokens."""
        return Copies(self.tokens[rows], self.weights[rows], self.share_logits[rows])

    @staticmethod
    def _mix(logprobs: Tensor, copied: Tensor, share_logits: Tensor) -> Tensor:
        # the smallest float in place of zero: 1e-38 of probability, and a gradient that is not NaN
        log_copied = copied.clamp(min=torch.finfo(copied.dtype).tiny).log()
        return torch.logaddexp(
            nn.functional.logsigmoid(-share_logits) + logprobs, nn.functional.logsigmoid(share_logits) + log_copied
        )


class CopyHead(nn.Module):
    """Turns a reading into copies. Works in float32 whatever the model computes in."""

    def __init__(self, hidden_size: int, config: LongMemConfig, kv_heads: int, scale: float) -> None:
        """`hidden_size`: of the state that the language-model head reads; `scale`: the backbone's own attention
        factor, where training starts for products that are not cosines."""
        super().__init__()
        self._runs = config.copy_match_tokens
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
        nn.init.zeros_(last.weight)

    def forward(
        self,
        reading: Reading,
        view: MemoryView,
        hidden: Float[Tensor, "tokens head_input"],
        context: Int[Tensor, " context"],
    ) -> Copies:
        """`context`: tokens of the segment up to and including the reading ones, which are its last."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self._copies(reading, view, hidden.float(), context)

    def _copies(self, reading: Reading, view: MemoryView, hidden: Tensor, context: Tensor) -> Copies:
        index, valid = reading.places.index, reading.places.valid
        stored = view.tokens.flatten()[slots_in_order(view)].long()
        # the memory, then the segment that follows it: its first token came after the newest stored one
        sequence = torch.cat([stored, context.long().to(stored.device)])
        readers = view.num_tokens + len(context) - len(hidden) + torch.arange(len(hidden), device=index.device)
        distances = (readers[:, None, None] - index).clamp(min=1)
        runs = _runs(sequence, index, readers, self._runs).where(valid, 0)
        logits = self.log_scale.exp() * reading.products + self.run_bias[runs] - self.age * distances.float().log()
        weights = logits.masked_fill(~valid, -torch.inf).softmax(dim=2)
        heads = weights.shape[1]
        tokens = sequence[(index + 1).where(valid, 0)].flatten(1)
        weights = weights.flatten(1) / heads
        similarity = self._similarity(reading.products)
        shares = _shares(tokens, weights)
        features = torch.stack(
            [
                similarity.masked_fill(~valid, -torch.inf).amax(dim=(1, 2)),
                similarity.where(valid, 0.0).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)),
                shares.amax(dim=1),
                (weights * shares.clamp(min=1e-9).log()).sum(dim=1),
                runs.amax(dim=(1, 2)).float() / max(self._runs, 1),
            ],
            dim=1,
        )
        learned = self.mlp(torch.cat([hidden, features], dim=1))[:, 0]
        return Copies(tokens, weights, self.bias + features @ self.feature_weights + learned)

    def _similarity(self, products: Tensor) -> Tensor:
        """Cosines as they are. Other products have no bound, and one of a thousand must not decide λ alone."""
        if self._cosines:
            return products
        return (products * (self._products_scale / COPY_SCALE)).tanh()


def _runs(
    sequence: Int64[Tensor, " sequence"],
    index: Int64[Tensor, "tokens heads retrieved"],
    readers: Int64[Tensor, " tokens"],
    longest: int,
) -> Int64[Tensor, "tokens heads retrieved"]:
    """How many tokens ending at each place equal those ending at the reader, counted up to `longest`."""
    runs = torch.zeros_like(index)
    unbroken = torch.ones_like(index, dtype=torch.bool)
    for back in range(longest):
        there, here = index - back, readers[:, None, None] - back
        equal = sequence[there.clamp(min=0)] == sequence[here.clamp(min=0)]
        unbroken = unbroken & equal & (there >= 0)
        runs = runs + unbroken
    return runs


def _shares(
    tokens: Int64[Tensor, "tokens copied"], weights: Float32[Tensor, "tokens copied"]
) -> Float32[Tensor, "tokens copied"]:
    """For every copied token, the weight of all copies of that same token."""
    order = tokens.argsort(dim=1)
    ordered = tokens.gather(1, order)
    changes = torch.zeros_like(ordered)
    changes[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = torch.zeros_like(ordered).scatter_(1, order, changes.cumsum(dim=1))
    sums = torch.zeros_like(weights).scatter_add(1, group, weights)
    return sums.gather(1, group)
