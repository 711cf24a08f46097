"""Short sketches of keys and queries whose inner product is never less than theirs.

For any invertible T, q · k = (T⁻ᵀq) · (Tk). Cut both into a leading part of `width - 1` coordinates and a rest: by the
inequality of Cauchy and Schwarz

    q · k  ≤  q̃₁ · k̃₁ + |q̃₂| |k̃₂|  =  [q̃₁, |q̃₂|] · [k̃₁, |k̃₂|]

and the two brackets are the sketches. T decides how tight that is. Here it makes the second moments of queries and of
keys equal and diagonal, largest first (balanced coordinates, as in the truncation of linear systems; Moore 1981): a
direction in which keys are long but nobody asks moves into the rest, which principal components of the keys alone
would keep. A sketch decides what is looked at, never a result.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

REST = 0.075
"""Share of the products that the rest may hold, in the mean over sampled pairs. Between half and twice as much, what a
shorter sketch saves is what its candidates cost (docs/performance.md)."""
WIDTH_STEP = 8
RIDGE = 1e-3
"""Share of the mean variance added to every direction, so that T can be inverted whatever the keys are."""


@dataclass(frozen=True)
class SketchBasis:
    """T and its inverse transpose, for each head that searches alone."""

    of_keys: Float64[Tensor, "index_heads index_dim index_dim"]
    of_queries: Float64[Tensor, "index_heads index_dim index_dim"]
    width: int
    """Columns of a sketch, the norm of the rest included."""

    @property
    def columns(self) -> int:
        """Columns of a key's row: its sketch, and a norm that margins need."""
        return self.width + 1

    def place_keys(
        self, keys: Float[Tensor, "index_heads chunks index_dim"]
    ) -> Float32[Tensor, "index_heads chunks columns"]:
        """Sketches of keys, and in the last column the larger of |k| and |sketch|."""
        sketches = self._cut(torch.einsum("hcd,hed->hce", keys.double(), self.of_keys))
        norms = torch.maximum(keys.double().norm(dim=2), sketches.double().norm(dim=2))
        return torch.cat([sketches, norms[..., None].float()], dim=2)

    def place_queries(
        self, queries: Float32[Tensor, "index_heads tokens index_dim"]
    ) -> Float32[Tensor, "index_heads tokens width"]:
        """Sketches of queries."""
        return self._cut(torch.einsum("htd,hed->hte", queries.double(), self.of_queries))

    def _cut(self, placed: Float64[Tensor, "index_heads rows index_dim"]) -> Float32[Tensor, "index_heads rows width"]:
        leading = self.width - 1
        rest = placed[..., leading:].norm(dim=2, keepdim=True)
        return torch.cat([placed[..., :leading], rest], dim=2).float()


@dataclass(frozen=True)
class KeySketch:
    """Sketches of the chunk keys of one view."""

    basis: SketchBasis
    rows: Float32[Tensor, "index_heads chunks columns"]
    """As `SketchBasis.place_keys` makes them."""

    def of_head(self, head: int) -> "KeySketch":
        """Of one of the heads that search alone."""
        one = slice(head, head + 1)
        basis = SketchBasis(self.basis.of_keys[one], self.basis.of_queries[one], self.basis.width)
        return KeySketch(basis, self.rows[one])

    def narrow(self, first: int, num_chunks: int) -> "KeySketch":
        """Of some of the chunks."""
        return KeySketch(self.basis, self.rows.narrow(1, first, num_chunks))


def fit_basis(
    keys: Float32[Tensor, "index_heads chunks index_dim"], queries: Float32[Tensor, "index_heads tokens index_dim"]
) -> SketchBasis | None:
    """The basis for keys and queries like these; None where no sketch of at most half the width is tight enough (keys
    that fill all directions alike)."""
    bases = [_balanced(*pair) for pair in zip(keys, queries, strict=True)]
    shares = torch.stack([(1 - importance.cumsum(0) / importance.sum()) for _, _, importance in bases]).amax(dim=0)
    enough = (shares <= REST).nonzero()
    leading = -(-(int(enough[0]) + 1) // WIDTH_STEP) * WIDTH_STEP - 1 if len(enough) else keys.shape[2]
    if 2 * leading > keys.shape[2]:
        return None
    return SketchBasis(
        torch.stack([of_keys for of_keys, _, _ in bases]),
        torch.stack([of_queries for _, of_queries, _ in bases]),
        leading + 1,
    )


def _balanced(keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T, T⁻ᵀ, and how much each coordinate adds to products."""
    moment = _second_moment(keys)
    root = torch.linalg.cholesky(moment)
    values, vectors = torch.linalg.eigh(root.T @ _second_moment(queries) @ root)
    importance = values.flip(0).clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    directions = vectors.flip(1).T
    of_queries = (directions @ root.T) / importance.sqrt()[:, None]
    of_keys = importance.sqrt()[:, None] * torch.linalg.solve_triangular(root, directions, upper=False, left=False)
    return of_keys, of_queries, importance


def _second_moment(rows: Tensor) -> Tensor:
    moment = rows.double().T @ rows.double() / len(rows)
    ridge = RIDGE * moment.diagonal().mean() + torch.finfo(torch.float32).tiny
    return moment + ridge * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
