# SPDX-License-Identifier: Apache-2.0
"""Short sketches of keys and queries, whose inner product is an upper bound of that of key and query.

For any invertible T, q · k = (T⁻ᵀq) · (Tk). Split both into `width - 1` leading coordinates and a residual. By the
Cauchy-Schwarz inequality

    q · k  ≤  q̃₁ · k̃₁ + |q̃₂| |k̃₂|  =  [q̃₁, |q̃₂|] · [k̃₁, |k̃₂|]

and the two brackets are the sketches. T decides how tight the bound is. The T used here makes the second moments of
queries and keys equal and diagonal, largest first (balanced coordinates, as in the truncation of linear systems; Moore
1981). Directions with long keys but short queries then move into the residual; principal components of the keys alone
would keep them. A sketch decides which keys get a full product, never a result.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

RESIDUAL_SHARE = 0.075
"""Largest share of the products in the residual, in the mean over sampled pairs. From half to twice this value, the
time that a shorter sketch saves equals the cost of its additional candidates (docs/performance.md)."""
WIDTH_STEP = 8
"""Multiple to which the number of leading coordinates plus one is rounded up."""
RIDGE = 1e-3
"""Share of the mean variance added to every direction, so that T can be inverted whatever the keys are."""


@dataclass(frozen=True)
class SketchBasis:
    """T and its inverse transpose, for each head with a search of its own."""

    key_transform: Float64[Tensor, "index_heads index_dim index_dim"]
    """T."""
    query_transform: Float64[Tensor, "index_heads index_dim index_dim"]
    """Inverse transpose of T."""
    width: int
    """Columns of a sketch, including the norm of the residual."""

    @property
    def columns(self) -> int:
        """Columns of a key's row: its sketch, and a norm for the margins."""
        return self.width + 1

    def place_keys(
        self, keys: Float[Tensor, "index_heads chunks index_dim"]
    ) -> Float32[Tensor, "index_heads chunks columns"]:
        """Compute the sketches of keys; the last column is the larger of |k| and |sketch|."""
        sketches = self._cut(torch.einsum("hcd,hed->hce", keys.double(), self.key_transform))
        norms = torch.maximum(keys.double().norm(dim=2), sketches.double().norm(dim=2))
        return torch.cat([sketches, norms[..., None].float()], dim=2)

    def place_queries(
        self, queries: Float32[Tensor, "index_heads tokens index_dim"]
    ) -> Float32[Tensor, "index_heads tokens width"]:
        """Compute the sketches of queries."""
        return self._cut(torch.einsum("htd,hed->hte", queries.double(), self.query_transform))

    def _cut(self, placed: Float64[Tensor, "index_heads rows index_dim"]) -> Float32[Tensor, "index_heads rows width"]:
        leading = self.width - 1
        residual = placed[..., leading:].norm(dim=2, keepdim=True)
        return torch.cat([placed[..., :leading], residual], dim=2).float()


@dataclass(frozen=True)
class KeySketch:
    """Sketches of the chunk keys of one view."""

    basis: SketchBasis
    rows: Float32[Tensor, "index_heads chunks columns"]
    """Result of `SketchBasis.place_keys`."""

    def select_head(self, head: int) -> "KeySketch":
        """Return the sketch of one index head, with an axis of length 1."""
        one = slice(head, head + 1)
        basis = SketchBasis(self.basis.key_transform[one], self.basis.query_transform[one], self.basis.width)
        return KeySketch(basis, self.rows[one])

    def narrow(self, first: int, num_chunks: int) -> "KeySketch":
        """Return the sketch of `num_chunks` chunks, from `first` on."""
        return KeySketch(self.basis, self.rows.narrow(1, first, num_chunks))


def fit_basis(
    keys: Float32[Tensor, "index_heads chunks index_dim"], queries: Float32[Tensor, "index_heads tokens index_dim"]
) -> SketchBasis | None:
    """Fit a basis to samples of keys and queries.

    Returns:
        The basis, or None if no sketch of at most half the width is tight enough (keys that fill all directions).
    """
    bases = [_balanced(*pair) for pair in zip(keys, queries, strict=True)]
    shares = torch.stack([(1 - importance.cumsum(0) / importance.sum()) for _, _, importance in bases]).amax(dim=0)
    enough = (shares <= RESIDUAL_SHARE).nonzero()
    leading = -(-(int(enough[0]) + 1) // WIDTH_STEP) * WIDTH_STEP - 1 if len(enough) else keys.shape[2]
    if 2 * leading > keys.shape[2]:
        return None
    return SketchBasis(
        torch.stack([key_transform for key_transform, _, _ in bases]),
        torch.stack([query_transform for _, query_transform, _ in bases]),
        leading + 1,
    )


def _balanced(keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return T, T⁻ᵀ and the contribution of each coordinate to the products."""
    moment = _second_moment(keys)
    root = torch.linalg.cholesky(moment)
    values, vectors = torch.linalg.eigh(root.T @ _second_moment(queries) @ root)
    importance = values.flip(0).clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    directions = vectors.flip(1).T
    query_transform = (directions @ root.T) / importance.sqrt()[:, None]
    inverse = torch.linalg.solve_triangular(root, directions, upper=False, left=False)
    return importance.sqrt()[:, None] * inverse, query_transform, importance


def _second_moment(rows: Tensor) -> Tensor:
    moment = rows.double().T @ rows.double() / len(rows)
    ridge = RIDGE * moment.diagonal().mean() + torch.finfo(torch.float32).tiny
    return moment + ridge * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
