# SPDX-License-Identifier: Apache-2.0
"""Block retrieval at every layer without training.

Xiao et al. 2024, "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory" (arXiv
2402.04617), section 3. The text is read in chunks. At every layer, the tokens of a chunk attend to

    [initial tokens | chosen blocks | local window | the chunk itself]

in one softmax. Tokens behind the local window form blocks, and a block has a few representative tokens: those whose
keys have the largest mean product with the queries of the local window after them. A layer chooses the blocks whose
representative keys have the largest sum of products with the chunk's queries. All tokens beyond the local window have
one position, `local_tokens` before the token that reads them.

Where the paper speaks of one head: representatives are chosen for each KV head, by the mean over its query heads, and
blocks for each layer, by the sum over heads.

The paper's lookup asks with all queries of the chunk, so that a prediction depends on later tokens of its chunk through
the choice. That is no likelihood of the text. `asking="before"` asks with the chunk before instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from longmem.backbone.backbone import Backbone
from longmem.backbone.fast.attention import attention_forward
from longmem.backbone.fast.rotation import rotation_of
from longmem.dtypes import to_array
from longmem.errors import ConfigError

ATTENTION = "infllm"
"""Name of the attention function in transformers."""

Asking = Literal["chunk", "before"]
"""Queries that choose the blocks of a chunk: its own, or those of the chunk before."""

Tables = tuple[Tensor, Tensor]
"""Cosines and sines of the positions 0, 1, 2, …, each [1, positions, rotated_dim]."""


@dataclass(frozen=True)
class InfLLMSizes:
    """Sizes in tokens; the start values are the paper's for a backbone of 8,192 positions (Llama-3)."""

    initial_tokens: int = 128
    local_tokens: int = 4096
    block_tokens: int = 128
    read_blocks: int = 32
    """Number of blocks that a chunk reads in each layer."""
    representatives: int = 4
    """Number of tokens that represent a block."""
    chunk_tokens: int = 512


class LayerContext:
    """Context of one layer: initial tokens, blocks and local window, all without positions.

    `read` gives the next chunk's attention and takes the chunk into the local window.
    """

    def __init__(self, sizes: InfLLMSizes) -> None:
        self._sizes = sizes
        self._initial: list[Tensor] = []
        """Keys and values of the initial tokens, once they have left the local window."""
        self._blocks: list[list[Tensor]] = []
        """Keys and values [kv_heads, block_tokens, head_dim] of each block."""
        self._represented: list[Tensor] = []
        """Sum of the representative keys of each block, [kv_heads, head_dim]."""
        self._local: list[Tensor] = []
        """Queries (mean over the heads of a KV head), keys and values of the local window."""
        self._asked: Tensor | None = None

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def fork(self) -> "LayerContext":
        """Return an equal context that goes on independently. Tensors are shared, because none is ever changed."""
        forked = LayerContext(self._sizes)
        forked._initial, forked._blocks = self._initial, [*self._blocks]
        forked._represented, forked._local, forked._asked = [*self._represented], self._local, self._asked
        return forked

    def read(
        self,
        attention: nn.Module,
        queries: Float[Tensor, "heads tokens head_dim"],
        keys: Float[Tensor, "kv_heads tokens head_dim"],
        values: Float[Tensor, "kv_heads tokens head_dim"],
        rotation: "Rotation",
        asking: Asking,
        scale: float,
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Return the attention of a chunk whose queries and keys have no position yet."""
        grouped = queries.unflatten(0, (len(keys), -1))
        far_queries = rotation.far(queries)
        own = far_queries.unflatten(0, (len(keys), -1)).sum(dim=(1, 2), dtype=torch.float32)
        far = self._far(own if asking == "chunk" else self._asked)
        self._asked = own
        new = [grouped.mean(dim=1), keys, values]
        held = self._local or [part[:, :0] for part in new]
        self._local = [torch.cat(parts, dim=1) for parts in zip(held, new, strict=True)]
        near_keys, near_values = rotation.at(self._local[1]), self._local[2]
        near_queries = rotation.at(queries, near_keys.shape[1] - queries.shape[1])
        if far is None:
            joint = near_queries, near_keys, near_values
        else:
            joint = _joined(near_queries, near_keys, near_values, far_queries, *far)
        attended, _ = attention_forward(attention, *(part[None] for part in joint), None, scaling=scale)
        self._evict(rotation)
        return attended[0, ..., : queries.shape[2]]

    def _far(self, asking: Tensor | None) -> list[Tensor] | None:
        """Return keys and values of the initial tokens and of the chosen blocks, in the text's order."""
        if not self._initial:
            return None
        parts = [self._initial]
        count = min(self._sizes.read_blocks, len(self._blocks))
        if count:
            assert asking is not None, "blocks exist from the second chunk on"
            relevance = torch.stack([(asking * keys).sum() for keys in self._represented])
            parts += [self._blocks[index] for index in relevance.topk(count).indices.sort().values.tolist()]
        return [torch.cat(part, dim=1) for part in zip(*parts, strict=True)]

    def _evict(self, rotation: "Rotation") -> None:
        """Move what no window of `local_tokens` reaches: first all initial tokens, then whole blocks."""
        sizes = self._sizes
        surplus = self._local[1].shape[1] - sizes.local_tokens
        if not self._initial and surplus >= sizes.initial_tokens:
            self._initial = [part[:, : sizes.initial_tokens].clone() for part in self._local[1:]]
            self._local = [part[:, sizes.initial_tokens :] for part in self._local]
            surplus -= sizes.initial_tokens
        if self._initial and surplus >= sizes.block_tokens:
            count = surplus // sizes.block_tokens * sizes.block_tokens
            scores = representative_scores(*self._local[:2], sizes.local_tokens, count, rotation)
            # a copy, because a view of the window would keep all of it
            evicted = [part[:, :count].clone().split(sizes.block_tokens, dim=1) for part in self._local[1:]]
            for block_scores, keys, values in zip(scores.split(sizes.block_tokens, dim=1), *evicted, strict=True):
                best = block_scores.topk(min(sizes.representatives, sizes.block_tokens), dim=1).indices
                chosen = keys.take_along_dim(best[..., None], dim=1)
                self._represented.append(chosen.sum(dim=1, dtype=torch.float32))
                self._blocks.append([keys, values])
            self._local = [part[:, count:] for part in self._local]


class Rotation:
    """Rotary positions of one attention module, from the backbone's own function."""

    def __init__(self, backbone: Backbone, sizes: InfLLMSizes) -> None:
        attention = backbone.family.attention_of(backbone.layers[0])
        self._rotate = rotation_of(attention)
        tables = getattr(backbone.stack, backbone.family.rotary or "")
        # a block can wait in the local window until it is whole
        count = sizes.local_tokens + sizes.initial_tokens + sizes.block_tokens + sizes.chunk_tokens
        positions = torch.arange(count, device=backbone.device)[None]
        # queries and keys come rotated by position 0, which has applied this factor
        self._tables: dict[torch.dtype, Tables] = {
            dtype: tuple(part / tables.attention_scaling for part in tables(torch.empty(0, dtype=dtype), positions))
            for dtype in (backbone.dtype, torch.float32)
        }
        self._far = sizes.local_tokens

    def at(self, vectors: Float[Tensor, "heads tokens head_dim"], first: int = 0) -> Tensor:
        """Return the vectors rotated to the positions `first`, `first + 1`, …"""
        return self._rotated(vectors, slice(first, first + vectors.shape[1]))

    def far(self, vectors: Float[Tensor, "heads tokens head_dim"]) -> Tensor:
        """Return the vectors rotated as far as a key at position 0 is beyond the local window."""
        return self._rotated(vectors, slice(self._far, self._far + 1))

    def _rotated(self, vectors: Tensor, positions: slice) -> Tensor:
        cos, sin = (table[:, positions] for table in self._tables[vectors.dtype])
        # the function rotates queries and keys; no heads in the second place cost nothing
        rotated: Tensor = self._rotate(vectors[None], vectors[None, :0], cos, sin)[0]
        return rotated[0]


def representative_scores(
    queries: Float[Tensor, "kv_heads tokens head_dim"],
    keys: Float[Tensor, "kv_heads tokens head_dim"],
    local_tokens: int,
    count: int,
    rotation: Rotation,
) -> Float[Tensor, "kv_heads count"]:
    """Return the mean product of each of the first `count` keys with the `local_tokens` queries after it.

    A sum of products with one key is the product with the sum, so that one cumulative sum serves all keys.
    """
    sums = rotation.at(queries.float()).cumsum(dim=1)
    windows = sums[:, local_tokens : local_tokens + count] - sums[:, :count]
    return (windows * rotation.at(keys[:, :count].float())).sum(dim=2) / local_tokens


def _joined(
    near_queries: Tensor,
    near_keys: Tensor,
    near_values: Tensor,
    far_queries: Tensor,
    far_keys: Tensor,
    far_values: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors of twice the width, whose products are those of either half.

    A query has another rotation for far keys than for near ones; with zeros in the other half of each key, one ordinary
    attention computes the softmax over both. Far keys come first, so that the attention is causal.
    """
    far, dim = far_keys.shape[1], far_keys.shape[2]
    keys, values = near_keys.new_zeros(2, len(near_keys), far + near_keys.shape[1], 2 * dim)
    keys[:, :far, dim:], keys[:, far:, :dim] = far_keys, near_keys
    values[:, :far, :dim], values[:, far:, :dim] = far_values, near_values
    return torch.cat([near_queries, far_queries], dim=2), keys, values


class Reading(NamedTuple):
    """Arguments that transformers passes on to the attention of each layer."""

    context: list[LayerContext]
    rotation: Rotation
    asking: Asking


class InfLLM(AbstractBaseline):
    """Baseline that reads a document chunk by chunk; see the module."""

    name = "InfLLM"

    def __init__(self, backbone: Backbone, sizes: InfLLMSizes = InfLLMSizes(), asking: Asking = "before") -> None:
        """Open the baseline. Raises ConfigError for a backbone without rotary positions, with sliding windows of its
        own, or with fewer positions than a local window and a chunk have."""
        if backbone.family.rotary is None:
            raise ConfigError(f"InfLLM needs rotary positions, {backbone.name} has none")
        if any(backbone.new_cache().is_sliding):
            raise ConfigError(f"InfLLM needs layers that read all positions, {backbone.name} has sliding windows")
        backbone.check_segment_tokens(sizes.local_tokens + sizes.chunk_tokens)
        self._backbone = backbone
        self._sizes = sizes
        self._asking = asking
        self._rotation = Rotation(backbone, sizes)

    @property
    def description(self) -> str:
        sizes = self._sizes
        asking = "its own queries" if self._asking == "chunk" else "the chunk before"
        return (
            f"chunks of {sizes.chunk_tokens}, local window of {sizes.local_tokens:,}, {sizes.initial_tokens} initial "
            f"tokens, {sizes.read_blocks} blocks of {sizes.block_tokens} for each chunk and layer, chosen by {asking}"
        )

    def logprobs(self, sequence: Sequence) -> LogProbs:
        tokens = torch.from_numpy(np.array(sequence)).to(self._backbone.device, torch.long)
        return self.score(self.new_context(), tokens[:-1], tokens[1:])

    def new_context(self) -> list[LayerContext]:
        """Return the empty context of every layer, for `read` and `score`."""
        return [LayerContext(self._sizes) for _ in range(self._backbone.num_layers)]

    def read(self, context: list[LayerContext], tokens: Int[Tensor, " tokens"]) -> None:
        """Take tokens into the context without predictions."""
        for _ in self._hidden(context, tokens):
            pass

    @torch.no_grad()
    def score(
        self, context: list[LayerContext], tokens: Int[Tensor, " tokens"], targets: Int[Tensor, " tokens"]
    ) -> LogProbs:
        """Return the log-probability of `targets[i]` after the context and `tokens[: i + 1]`.

        The tokens join the context.
        """
        scores = [torch.empty(0)]
        for hidden, wanted in zip(self._hidden(context, tokens), targets.split(self._sizes.chunk_tokens), strict=False):
            scores.append(self._backbone.target_logprobs(hidden, wanted))
        return to_array(torch.cat(scores))

    @torch.no_grad()
    def _hidden(self, context: list[LayerContext], tokens: Tensor) -> Iterator[Float[Tensor, "chunk head_input"]]:
        for chunk in tokens.split(self._sizes.chunk_tokens):
            if not len(chunk):
                return
            with self._attending():
                # every token at position 0, whose rotation changes nothing: the contexts rotate queries and keys
                output = self._backbone.stack(
                    input_ids=chunk[None],
                    position_ids=torch.zeros_like(chunk[None]),
                    use_cache=False,
                    infllm=Reading(context, self._rotation, self._asking),
                )
            yield output.last_hidden_state[0]

    @contextmanager
    def _attending(self) -> Iterator[None]:
        model = self._backbone.model
        before = model.config._attn_implementation
        AttentionInterface.register(ATTENTION, _attend)
        AttentionMaskInterface.register(ATTENTION, _no_mask)
        model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            model.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    scaling: float,
    infllm: Reading,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' own functions do: from [1, heads, tokens, dim] to [1, tokens, heads, dim]."""
    assert module.layer_idx is not None, "the layers of a model are numbered"
    layer = infllm.context[int(module.layer_idx)]
    attended = layer.read(module, query[0], key[0], value[0], infllm.rotation, infllm.asking, scaling)
    return attended[None], None


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Return no mask: the contexts know what a token may read."""
