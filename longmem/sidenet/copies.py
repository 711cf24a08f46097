# SPDX-License-Identifier: Apache-2.0
"""Candidates for copying from a memory, their weights, and the mixture with the model's own distribution."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Candidates:
    """Memory places that the reading tokens may copy from, with their features. No field depends on a weight of the
    copy head."""

    index: Int64[Tensor, "*found"]
    """Place in the memory; 0 where `valid` is false."""
    valid: Bool[Tensor, "*found"]
    """True for slots that hold a place."""
    tokens: Int64[Tensor, "*found"]
    """Token after each place."""
    runs: Int64[Tensor, "*found"]
    """Length of the run of equal tokens that ends at the place and at the reading token."""
    log_distances: Float32[Tensor, "*found"]
    """Natural logarithm of the distance, in tokens, from place to reading token."""

    def rows(self, rows: "slice | Int64[Tensor, ' rows']") -> "Candidates":
        """Return the candidates of the tokens that `rows` selects."""
        return Candidates(**{name: part[rows] for name, part in vars(self).items()})


def candidates_of(
    index: Int64[Tensor, "*found"],
    valid: Bool[Tensor, "*found"],
    runs: Int64[Tensor, "*found"],
    sequence: Int64[Tensor, " sequence"],
) -> Candidates:
    """Return the candidates at places of a `sequence` whose last tokens are the reading ones, one per row of
    `index`."""
    readers = len(sequence) - len(index) + torch.arange(len(index), device=index.device)
    distances = readers.view(-1, *[1] * (index.ndim - 1)) - index
    return Candidates(
        index=index.where(valid, 0),
        valid=valid,
        tokens=sequence[(index + 1).where(valid, 0)],
        runs=runs.where(valid, 0),
        log_distances=distances.clamp(min=1).float().log(),
    )


@dataclass(frozen=True)
class Copies:
    """Copy distribution of one row and its share of the output."""

    tokens: Int64[Tensor, "tokens copied"]
    """Token after each place: those retrieved in every head's slots, then the repeats."""
    weights: Float32[Tensor, "tokens copied"]
    """Weights of the copied tokens, which sum to one; zero for slots without a place."""
    share_logits: Float32[Tensor, " tokens"]
    """Logits of λ = sigmoid(share_logits)."""
    repeated: Candidates | None
    """Places of the repeats, [tokens, found]; None where the model copies only retrieved tokens."""

    @property
    def share(self) -> Float32[Tensor, " tokens"]:
        return self.share_logits.sigmoid()

    def mix_targets(
        self, logprobs: Float32[Tensor, " targets"], targets: Int[Tensor, " targets"]
    ) -> Float32[Tensor, " targets"]:
        """Return the log-probability of target i under the mixture of position i; `logprobs` are the model's own."""
        count = len(targets)
        hits = self.tokens[:count] == targets.to(self.tokens.device)[:, None]
        copied = (self.weights[:count] * hits).sum(dim=1)
        return self._mix(logprobs, copied, self.share_logits[:count])

    def mix_logits(self, logits: Float32[Tensor, "tokens vocabulary"]) -> Float32[Tensor, "tokens vocabulary"]:
        """Return log-probabilities of the whole vocabulary under the mixture."""
        copied = torch.zeros_like(logits).scatter_add_(1, self.tokens, self.weights)
        return self._mix(logits.log_softmax(dim=1), copied, self.share_logits[:, None])

    def rows(self, rows: slice) -> "Copies":
        """Return the copies of the tokens that `rows` selects."""
        repeated = self.repeated and self.repeated.rows(rows)
        return Copies(self.tokens[rows], self.weights[rows], self.share_logits[rows], repeated)

    @staticmethod
    def _mix(logprobs: Tensor, copied: Tensor, share_logits: Tensor) -> Tensor:
        # smallest positive float instead of zero: adds 1e-38 of probability and keeps the gradient free of NaN
        log_copied = copied.clamp(min=torch.finfo(copied.dtype).tiny).log()
        return torch.logaddexp(
            nn.functional.logsigmoid(-share_logits) + logprobs, nn.functional.logsigmoid(share_logits) + log_copied
        )


def certainty(
    tokens: Int64[Tensor, "tokens copied"], weights: Float32[Tensor, "tokens copied"]
) -> tuple[Float32[Tensor, " tokens"], Float32[Tensor, " tokens"]]:
    """Return the largest share of one token, and the expected logarithm of a token's share."""
    shares = token_shares(tokens, weights)
    return shares.amax(dim=1), (weights * shares.clamp(min=1e-9).log()).sum(dim=1)


def token_shares(
    tokens: Int64[Tensor, "tokens copied"], weights: Float32[Tensor, "tokens copied"]
) -> Float32[Tensor, "tokens copied"]:
    """Return, for every copied token, the summed weight of all copies of that token."""
    order = tokens.argsort(dim=1)
    ordered = tokens.gather(1, order)
    changes = torch.zeros_like(ordered)
    changes[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = torch.zeros_like(ordered).scatter_(1, order, changes.cumsum(dim=1))
    sums = torch.zeros_like(weights).scatter_add(1, group, weights)
    return sums.gather(1, group)
