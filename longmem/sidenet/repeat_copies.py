# SPDX-License-Identifier: Apache-2.0
"""Copies from places where the last tokens repeat, in addition to those that keys retrieve.

    r_t  = softmax_k( n[run_tk] − δ[run_tk] · ln distance_tk )            over the repeats of `retrieval.repeats`
    z_t  = b + w · (f_t, g_t) + MLP(hidden_t, f_t, g_t)                   g: `REPEAT_FEATURES`, f: the copy head's

    shares of model : retrieved : repeats  =  1 : exp(y_t + v · g_t) : exp z_t        y: the copy head's logit of λ

The value of a similar place decays with distance; that of an exact repeat hardly does. So δ depends on the length of
the run. The result is an n-gram cache (Kuhn and De Mori 1990, IEEE TPAMI 12) with a learned weight per token.
"""

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from longmem.retrieval.repeats import LONGEST
from longmem.sidenet.copies import Candidates, Copies, certainty

REPEAT_FEATURES = ("largest share", "expected log share", "longest run")
"""Confidence features of the repeats; all zero for a token without repeats."""
WEIGHTS = (0.9, 2.0, -0.35, 0.75, 1.0, 1.6, 0.15, 5.0)
"""Initial w."""
BIAS = -5.2
RUN_BIAS = (-1.2, 0.23)
"""Initial n of an empty run, and its increment per token of the run."""
AGE = (0.4, 0.1)
"""Initial δ of runs of one token, and of longer runs."""


class RepeatCopies(nn.Module):
    """Second half of the copy head. Its initial values were fitted in the way of the first half."""

    def __init__(self, hidden_size: int, num_features: int, mlp_width: int) -> None:
        super().__init__()
        runs = torch.arange(LONGEST + 1)
        self.run_bias = nn.Parameter(RUN_BIAS[0] + RUN_BIAS[1] * runs)
        self.age = nn.Parameter(torch.where(runs > 1, AGE[1], AGE[0]))
        self.weights = nn.Parameter(torch.tensor(WEIGHTS))
        self.bias = nn.Parameter(torch.tensor(BIAS))
        self.retrieved_weights = nn.Parameter(torch.zeros(len(REPEAT_FEATURES)))
        """Weights v: effect of the repeat features on the share of retrieved tokens."""
        last = nn.Linear(mlp_width, 1, bias=False)
        first = nn.Linear(hidden_size + num_features + len(REPEAT_FEATURES), mlp_width)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        nn.init.zeros_(last.weight)

    def join(
        self,
        copies: Copies,
        found: Candidates,
        hidden: Float32[Tensor, "tokens head_input"],
        features: Float32[Tensor, "tokens features"],
    ) -> Copies:
        """Return one distribution of `copies` (retrieved tokens, with their `features`) and of the repeats `found`."""
        logits = self.run_bias[found.runs] - self.age[found.runs] * found.log_distances
        # finite instead of -inf, so that a token without a repeat has gradients that are not NaN
        weights = logits.masked_fill(~found.valid, torch.finfo(logits.dtype).min).softmax(dim=1) * found.valid
        own = torch.stack([*certainty(found.tokens, weights), found.runs.amax(dim=1).float() / LONGEST], dim=1)
        retrieved = copies.share_logits + own @ self.retrieved_weights
        both = torch.cat([features, own], dim=1)
        repeated = self.bias + both @ self.weights + self.mlp(torch.cat([hidden, both], dim=1))[:, 0]
        repeated = repeated.masked_fill(~found.valid.any(dim=1), -torch.inf)
        share = (repeated - retrieved).sigmoid()[:, None]
        return Copies(
            torch.cat([copies.tokens, found.tokens], dim=1),
            torch.cat([copies.weights * (1 - share), weights * share], dim=1),
            torch.logaddexp(retrieved, repeated),
            found,
        )
