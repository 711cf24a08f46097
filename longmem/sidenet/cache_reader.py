# SPDX-License-Identifier: Apache-2.0
"""CacheReader: the frozen backbone reads the memory at every layer, as a KV cache that is put together for a segment.

    positions   0     1 …                                      n                n + 1 …
              │ sink │ older blocks, chosen │ near past        │ the segment's own tokens │
                └──────────── from memory, rotated ────────────┘

Each layer attends to all of it in one softmax, as to a context that the backbone has read. Stored keys have no position
and are rotated to consecutive ones. Nothing is trained; the copy head mixes copies into the result, as for a SideNet.

Relatives: InfLLM (Xiao et al. 2024, arXiv 2402.04617) and EM-LLM (Fountas et al. 2024, arXiv 2407.09450) read blocks at
every layer too, but of a context that one pass has read from its start. In two passes, a block depends on its own
segment alone, so that segments are encoded in parallel (as in Dynamic Block-Sparse Attention, arXiv 2503.08640). With
`one_pass`, keys and values of the reading pass are stored, as in InfLLM: one forward instead of two.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from longmem.backbone.backbone import Backbone, BackboneOutput
from longmem.backbone.cache_assembly import CacheAssembly, Rows
from longmem.backbone.shared_prompts import shared_tokens
from longmem.config import LongMemConfig
from longmem.errors import ConfigError
from longmem.memory.view import MemoryView
from longmem.retrieval.base import AbstractChunkSearch
from longmem.sidenet.block_choice import Asking, tokens_to_read
from longmem.sidenet.copy_head import CopyHead
from longmem.sidenet.readers import MemoryReader, RetrievedMemory
from longmem.sidenet.reading_model import NO_PROMPT, ReadingInput, ReadingModel, ReadingOutput


@dataclass
class DecodingCache:
    """KV cache of one segment that is decoded step by step."""

    held: Any = field(default=None)
    """A transformers cache that begins with the memory; None before the first step."""


class CacheReader(ReadingModel):
    """Backbone with memory at every layer. Its parameters are those of the memory reader and the copy head."""

    def __init__(self, backbone: Backbone, config: LongMemConfig, start_token: int | None) -> None:
        """`start_token` is the attention sink. Raises ConfigError for a backbone that cannot read so."""
        super().__init__()
        self.config = config
        # in one pass, a segment comes with the hidden states that it was encoded with
        self.runs_backbone = not config.one_pass
        self.memory_layer = config.resolve_layer(backbone.num_layers)
        self._assembly = CacheAssembly(backbone)
        self._start_token = start_token if config.has_sink else None
        # a list keeps the shared backbone unregistered: it is neither saved nor trained
        self._shared = [backbone]
        self._check_positions()
        scale = backbone.family.scale_of(backbone.family.attention_of(backbone.layers[self.memory_layer]))
        self.reader = MemoryReader(backbone.shape, config, scale, fusion=False)
        head_input = int(backbone.model.get_output_embeddings().weight.shape[1])
        self.copy_head = CopyHead(head_input, config, backbone.shape.kv_heads, scale) if config.copy_head else None

    @property
    def _backbone(self) -> Backbone:
        return self._shared[0]

    def _check_positions(self) -> None:
        config, limit = self.config, self._backbone.max_tokens
        # the first position is the sink's
        needed, what, sizes = 1 + config.segment_tokens, "sink", "segment_tokens; lower it"
        if config.memory_tokens:
            needed += config.near_tokens + config.read_blocks * config.block_tokens
            what, sizes = "memory", "near_tokens + read_blocks * block_tokens + segment_tokens; lower one of them"
        if limit is not None and needed > limit:
            raise ConfigError(
                f"a segment with its {what} must fit the {limit} positions of backbone {self._backbone.name}, got "
                f"{needed} = 1 + {sizes}"
            )

    @property
    def num_parts(self) -> int:
        return 0

    @property
    def changes_backbone(self) -> bool:
        return False

    def gate_mean(self) -> float:
        return 0.0

    def new_cache(self) -> DecodingCache:
        return DecodingCache()

    def prepare(self, tokens: Tensor, state: Tensor, cache: Any = None) -> Tensor:
        del tokens, cache
        return state

    @torch.no_grad()
    def forward(
        self, given: ReadingInput, search: AbstractChunkSearch, cache: DecodingCache | None = None
    ) -> ReadingOutput:
        layers_read: list[Int64[Tensor, " read"] | None] = [None] * len(given.views)
        if cache is not None:
            hidden = self._decoded(given, search, cache)
        elif len(given.state):
            hidden = given.state[0]
        else:
            hidden = self._hidden(given, search, layers_read)
        readings: list[RetrievedMemory | None] = [None] * len(given.views)
        if self.copy_head is not None:
            readings = self._read(None, given, search)
        return ReadingOutput(hidden, readings, self._copies(given, hidden, readings), layers_read)

    def encode(
        self, tokens: Int[Tensor, "1 tokens"], view: MemoryView | None, search: AbstractChunkSearch
    ) -> BackboneOutput:
        """Run the backbone over a segment behind what it reads of the view, and keep keys and values of all layers.

        They have no position, and are those that every layer computes from hidden states which have read the memory.
        """
        backbone, layers = self._backbone, range(self._backbone.num_layers)
        index = None if view is None else tokens_to_read(view, self.config, search=search)
        cache = self._cache(view, index, batch=1, room=tokens.shape[1])
        if not self._starts(tokens)[0]:
            return backbone.forward(tokens, layers, None, cache)
        keys, values, hidden = self._sink
        first = BackboneOutput(keys[None], values[None], hidden.new_empty((0, 1, 1, hidden.shape[-1])), hidden)
        return first if tokens.shape[1] == 1 else first.continued(backbone.forward(tokens[:, 1:], layers, None, cache))

    def places(self, view: MemoryView, search: AbstractChunkSearch) -> Int64[Tensor, " read"] | None:
        """Return the places of the view that every layer of a segment reads, ascending; None for none."""
        index = tokens_to_read(view, self.config, search=search)
        return None if index is None else index.unique()

    def _hidden(
        self, given: ReadingInput, search: AbstractChunkSearch, layers_read: list[Int64[Tensor, " read"] | None]
    ) -> Float[Tensor, "batch tokens head_input"]:
        """Run rows of one view and one prompt together, and note the places that they read."""
        rows_of: dict[tuple[int, bool, bool, tuple[int, ...]], list[int]] = {}
        starts = self._starts(given.tokens)
        for row, view in enumerate(given.views):
            prompt = given.prompts[row] if given.prompts else NO_PROMPT
            begun = tuple(given.tokens[row, : prompt.num_tokens].tolist())
            rows_of.setdefault((id(view), starts[row], prompt.continues, begun), []).append(row)
        parts: list[Tensor | None] = [None] * len(given.views)
        for (_, begins, _, begun), rows in rows_of.items():
            view = given.views[rows[0]]
            index = self._chosen(given, rows[0], search)
            read = self._run_shared(given.tokens[rows], view, index, begins, shared_tokens(len(begun), len(rows)))
            for row, hidden in zip(rows, read, strict=True):
                parts[row], layers_read[row] = hidden, None if index is None else index.unique()
        return torch.stack([part for part in parts if part is not None])

    def _decoded(
        self, given: ReadingInput, search: AbstractChunkSearch, cache: DecodingCache
    ) -> Float[Tensor, "batch tokens head_input"]:
        if cache.held is not None:
            return self._backbone.run(given.tokens, cache.held)
        begins = self._starts(given.tokens)[0]
        hidden, cache.held = self._run(given.tokens, given.views[0], self._chosen(given, 0, search), begins)
        return hidden

    def _chosen(self, given: ReadingInput, row: int, search: AbstractChunkSearch) -> Int64[Tensor, " read"] | None:
        view = given.views[row]
        if view is None:
            return None
        tokens = given.tokens[row]
        # a text of its own begins with the start token, which is read anyway and asks for nothing
        first, prompt = int(tokens[0] == self._start_token), given.prompts[row] if given.prompts else NO_PROMPT
        asking = None
        if first < prompt.num_tokens:
            asks = slice(first, prompt.num_tokens)
            keys = self.reader.key_space.transform(given.keys[row, asks])
            asking = Asking.prompt(tokens[asks], keys, continues=prompt.continues)
        return tokens_to_read(view, self.config, asking, search)

    def _starts(self, tokens: Int[Tensor, "batch tokens"]) -> list[bool]:
        """Return for each row whether it begins with the sink itself."""
        return [token == self._start_token for token in tokens[:, 0].tolist()]

    def _run(
        self,
        tokens: Int[Tensor, "rows tokens"],
        view: MemoryView | None,
        index: Int64[Tensor, " read"] | None,
        begins: bool,
    ) -> tuple[Float[Tensor, "rows tokens head_input"], Any]:
        """Return hidden states, and the cache behind them, which holds the places `index` of the view.

        Where the rows begin with the sink itself, the memory lies between it and the other tokens. The sink then
        predicts without memory, as in the backbone.
        """
        if begins and index is None:
            cache = self._backbone.new_cache()
            return self._backbone.run(tokens, cache), cache
        cache = self._cache(view, index, *tokens.shape)
        if not begins:
            return self._backbone.run(tokens, cache), cache
        first = self._sink[2].expand(len(tokens), -1, -1)
        if tokens.shape[1] == 1:
            return first, cache
        return torch.cat([first, self._backbone.run(tokens[:, 1:], cache)], dim=1), cache

    def _run_shared(
        self,
        tokens: Int[Tensor, "rows tokens"],
        view: MemoryView | None,
        index: Int64[Tensor, " read"] | None,
        begins: bool,
        shared: int,
    ) -> Float[Tensor, "rows tokens head_input"]:
        """Return the hidden states of `_run`; the first `shared` tokens are equal in all rows, and run once."""
        if not shared:
            return self._run(tokens, view, index, begins)[0]
        first, cache = self._run(tokens[:1, :shared], view, index, begins)
        first = first.expand(len(tokens), -1, -1)
        if shared == tokens.shape[1]:
            return first
        cache.batch_repeat_interleave(len(tokens))
        return torch.cat([first, self._backbone.run(tokens[:, shared:], cache)], dim=1)

    def assembled(self, view: MemoryView) -> Any:
        """Return the transformers cache behind which a segment reads this view."""
        return self._cache(view, tokens_to_read(view, self.config), batch=1, room=0)

    def _cache(self, view: MemoryView | None, index: Int64[Tensor, " read"] | None, batch: int, room: int) -> Any:
        """Return a cache of what is read, with memory for `room` tokens behind it."""
        keys, values = list[Rows](), list[Rows]()
        if self._start_token is not None:
            keys.append(self._sink[0])
            values.append(self._sink[1])
        if view is not None and index is not None:
            assert view.layer_keys is not None, "a view of one layer"
            assert view.layer_values is not None, "a view of one layer"
            keys.append(view.layer_keys.chosen(index))
            values.append(view.layer_values.chosen(index))
        if not keys:
            return self._backbone.new_cache()
        return self._assembly.assemble(keys, values, batch, room)

    @cached_property
    def _sink(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [1, stored_heads, head_dim] of the start token at every layer, and its hidden state."""
        output = self._backbone.forward(
            torch.tensor([[self._start_token]]), range(self._backbone.num_layers), tap_every=None
        )
        return output.keys[0], output.values[0], output.hidden
