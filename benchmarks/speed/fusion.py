# SPDX-License-Identifier: Apache-2.0
"""Reading of retrieved tokens: products of queries with keys, and mixtures of values, for one segment.

The C version reads rows in place. Torch copies them first: a tile of tokens at a time, or all at once as in the
formula, an array of tokens × heads × retrieved × head_dim. torch.compile makes one loop of the formula, on a GPU a
Triton kernel, and copies nothing.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from benchmarks.speed.real_memory import Listening, RealMemory
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.retrieval.gather import TORCH_GATHER, AbstractGather
from longmem.retrieval.native_gather import NativeGather


class WholeGather(AbstractGather):
    """Gather that copies and widens every row before the first product."""

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        return torch.einsum("thkd,thd->thk", _copied(ids, rows, queries.dtype), queries)

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        return torch.einsum("thkd,thk->thd", _copied(ids, rows, weights.dtype), weights)


def _copied(
    ids: Int64[Tensor, "tokens heads retrieved"], rows: Shaped[Tensor, "kv_heads rows head_dim"], dtype: torch.dtype
) -> Float[Tensor, "tokens heads retrieved head_dim"]:
    copied: Tensor = rows[_kv_heads(ids, rows), ids].to(dtype)
    return copied


class CompiledGather(AbstractGather):
    """Gather in loops that torch.compile generates for each new shape; the first call takes seconds."""

    def __init__(self) -> None:
        self._products = torch.compile(_summed_products)
        self._mixtures = torch.compile(_summed_mixtures)

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        made: Tensor = self._products(queries, ids, rows, _kv_heads(ids, rows))
        return made

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        made: Tensor = self._mixtures(weights, ids, rows, _kv_heads(ids, rows))
        return made


def _kv_heads(ids: Tensor, rows: Tensor) -> Int64[Tensor, "1 heads 1"]:
    """Return the head of `rows` that each head of `ids` reads."""
    heads = ids.shape[1]
    return (torch.arange(heads, device=ids.device) // (heads // len(rows)))[None, :, None]


def _summed_products(queries: Tensor, ids: Tensor, rows: Tensor, kv_heads: Tensor) -> Tensor:
    return (rows[kv_heads, ids].to(queries.dtype) * queries[:, :, None]).sum(dim=3)


def _summed_mixtures(weights: Tensor, ids: Tensor, rows: Tensor, kv_heads: Tensor) -> Tensor:
    return (rows[kv_heads, ids].to(weights.dtype) * weights[..., None]).sum(dim=2)


@dataclass
class ListeningGather(AbstractGather):
    """Gather that delegates to `gather` and records the arguments."""

    gather: AbstractGather
    of_products: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    of_mixtures: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def products(
        self,
        queries: Float[Tensor, "tokens heads head_dim"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads retrieved"]:
        self.of_products.append((queries, ids, rows))
        return self.gather.products(queries, ids, rows)

    def mixtures(
        self,
        weights: Float[Tensor, "tokens heads retrieved"],
        ids: Int64[Tensor, "tokens heads retrieved"],
        rows: Shaped[Tensor, "kv_heads rows head_dim"],
    ) -> Float[Tensor, "tokens heads head_dim"]:
        self.of_mixtures.append((weights, ids, rows))
        return self.gather.mixtures(weights, ids, rows)

    def again(self, gather: AbstractGather) -> list[Tensor]:
        """Return the results of another gather for the recorded arguments."""
        products = [gather.products(*arguments) for arguments in self.of_products]
        return products + [gather.mixtures(*arguments) for arguments in self.of_mixtures]


def fusion(memory: RealMemory, name: str, repeats: int, *, compiled: bool = True) -> SpeedTable:
    """Time the reading of a segment's full window; `compiled` includes torch.compile, which needs a C++ compiler."""
    engine = memory.model.search
    listening = Listening(engine)
    listening.gather = heard = ListeningGather(engine.gather)
    memory.model.search = listening
    memory.model.score_segment(memory.segment, memory.encoded.block.keys, memory.encoded.state, memory.view)
    memory.model.search = engine
    kinds: dict[str, AbstractGather] = {}
    if memory.on_cpu:
        kinds["in C, in place (search=native)"] = NativeGather()
    kinds |= {"torch, a tile at a time (search=torch)": TORCH_GATHER, "torch, all rows at once": WholeGather()}
    if compiled:
        kinds["torch.compile, in one loop"] = CompiledGather()
    exact = heard.again(WholeGather())
    differences = {
        label: max(float((one - other).abs().max()) for one, other in zip(heard.again(kind), exact, strict=True))
        for label, kind in kinds.items()
    }
    with torch.no_grad():
        timings = take_turns({label: lambda kind=kind: heard.again(kind) for label, kind in kinds.items()}, repeats)
    _, ids, rows = heard.of_products[0]
    title = (
        f"{name}: {ids.shape[0]:,} tokens × {ids.shape[1]} heads read {ids.shape[2]} of {rows.shape[1]:,} keys and "
        f"values of {rows.shape[2]} in {str(rows.dtype).removeprefix('torch.')}"
    )
    lines = [
        BenchmarkRow(label, timing, {"largest difference": f"{differences[label]:.1e}"})
        for label, timing in timings.items()
    ]
    return SpeedTable(title, lines, {"threads": torch.get_num_threads()})
