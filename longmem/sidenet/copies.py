"""What can be copied from a memory, how much each place weighs, and the mixture with the model's own distribution."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Candidates:
    """Places that reading tokens may copy from, and what is known of each. Nothing here depends on a weight of the
    copy head."""

    index: Int64[Tensor, "*found"]
    """The place; 0 where `valid` is false."""
    valid: Bool[Tensor, "*found"]
    """Whether the slot holds a place."""
    tokens: Int64[Tensor, "*found"]
    """The token after the place."""
    runs: Int64[Tensor, "*found"]
    """Equal tokens up to the place and up to the reader."""
    log_distances: Float32[Tensor, "*found"]
    """ln of the tokens between place and reader."""

    def rows(self, rows: "slice | Int64[Tensor, ' rows']") -> "Candidates":
        """Of some of the tokens."""
        return Candidates(**{name: part[rows] for name, part in vars(self).items()})


def candidates_of(
    index: Int64[Tensor, "*found"],
    valid: Bool[Tensor, "*found"],
    runs: Int64[Tensor, "*found"],
    sequence: Int64[Tensor, " sequence"],
) -> Candidates:
    """Candidates at places of a `sequence` whose last tokens are the readers; there are as many as rows of `index`."""
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
    """One row's copy distribution and its share of the output."""

    tokens: Int64[Tensor, "tokens copied"]
    """The token after each place: those retrieved in every head's slots, then the repeats."""
    weights: Float32[Tensor, "tokens copied"]
    """Sum to one; zero for places that are not there."""
    share_logits: Float32[Tensor, " tokens"]
    """λ = sigmoid of these."""
    repeated: Candidates | None
    """Where the repeats stand, [tokens, found]; None where the model copies only what was retrieved."""

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
        repeated = self.repeated and self.repeated.rows(rows)
        return Copies(self.tokens[rows], self.weights[rows], self.share_logits[rows], repeated)

    @staticmethod
    def _mix(logprobs: Tensor, copied: Tensor, share_logits: Tensor) -> Tensor:
        # the smallest float in place of zero: 1e-38 of probability, and a gradient that is not NaN
        log_copied = copied.clamp(min=torch.finfo(copied.dtype).tiny).log()
        return torch.logaddexp(
            nn.functional.logsigmoid(-share_logits) + logprobs, nn.functional.logsigmoid(share_logits) + log_copied
        )


def certainty(
    tokens: Int64[Tensor, "tokens copied"], weights: Float32[Tensor, "tokens copied"]
) -> tuple[Float32[Tensor, " tokens"], Float32[Tensor, " tokens"]]:
    """The largest share of one token, and the expected logarithm of a token's share."""
    shares = token_shares(tokens, weights)
    return shares.amax(dim=1), (weights * shares.clamp(min=1e-9).log()).sum(dim=1)


def token_shares(
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
