# SPDX-License-Identifier: Apache-2.0
"""Interface of the two models that read a memory, and what they share: the search, and the copies.

SideNet        trained layers next to the backbone; one of them attends to what a search finds (paper)
CacheReader    the backbone itself, which reads the memory at every layer as its KV cache
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor, nn

from longmem.config import LongMemConfig
from longmem.memory.view import MemoryView
from longmem.retrieval.base import AbstractChunkSearch
from longmem.sidenet.copies import Copies
from longmem.sidenet.copy_head import CopyHead
from longmem.sidenet.readers import MemoryReader, RetrievedMemory
from longmem.sidenet.token_readings import PlacesRead


@dataclass(frozen=True)
class RowPrompt:
    """Leading tokens of a row that choose what every layer reads."""

    num_tokens: int
    """0 for a row without a prompt."""
    continues: bool
    """True where the row was cut from the text of its memory, and goes on where the memory ends."""


NO_PROMPT = RowPrompt(0, continues=True)


@dataclass(frozen=True)
class ReadingInput:
    """Batch of segments, or of pieces of segments when decoding step by step."""

    tokens: Int[Tensor, "batch tokens"]
    state: Float[Tensor, "parts batch tokens hidden"]
    """State that `prepare` returned, or the initial one; no parts where the model needs none. One part where no layer
    is left to run: the backbone's hidden states, as the language-model head reads them."""
    keys: Shaped[Tensor, "batch tokens kv_heads head_dim"]
    """Backbone keys of these tokens at the memory layer, in their stored form."""
    views: list[MemoryView | None]
    """View that row b may read (None: no memory, local attention only)."""
    before: Int[Tensor, "batch earlier"] | None = None
    """Tokens of the segment that earlier decoding steps have read."""
    prompts: Sequence[RowPrompt] | None = None
    """Prompt of each row; None where no row has one."""

    def rows(
        self, index: Int64[Tensor, " rows"], views: list[MemoryView | None], prompts: Sequence[RowPrompt] | None = None
    ) -> "ReadingInput":
        """Return rows `index` of the batch, row i with `views[i]` as its memory. A row may be taken several times."""
        tokens = self.tokens[index.to(self.tokens.device)]
        return ReadingInput(tokens, self.state[:, index], self.keys[index], views, prompts=prompts)


@dataclass(frozen=True)
class ReadingOutput:
    """Hidden states for the language-model head, and the memory reading of each row (None: nothing read)."""

    hidden: Float[Tensor, "batch tokens head_input"]
    readings: list[RetrievedMemory | None]
    copies: list[Copies | None]
    layers_read: list[Int64[Tensor, " read"] | None]
    """Places that every layer of a row read, ascending; None where the layers read none."""


class ReadingModel(nn.Module, ABC):
    """Model that predicts tokens with a memory: `prepare`, then `forward`."""

    config: LongMemConfig
    memory_layer: int
    """Layer whose keys are searched."""
    reader: MemoryReader
    copy_head: CopyHead | None
    runs_backbone: bool
    """True where `forward` runs the backbone's blocks, so that a worker must keep them."""

    @abstractmethod
    def new_cache(self) -> Any:
        """Return an empty cache for `prepare` and `forward`, to decode step by step."""

    @abstractmethod
    def prepare(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: Float[Tensor, "parts batch tokens hidden"],
        cache: Any = None,
    ) -> Float[Tensor, "fewer batch tokens hidden"]:
        """Return the state after all layers that need no memory."""

    @abstractmethod
    def forward(self, given: ReadingInput, search: AbstractChunkSearch, cache: Any = None) -> ReadingOutput:
        """Predict. Row b reads `views[b]` and nothing else."""

    @property
    @abstractmethod
    def num_parts(self) -> int:
        """Return the number of parts of the state that `encode` passes on; 0 where the model needs none, 1 for the
        backbone's hidden states."""

    @property
    @abstractmethod
    def changes_backbone(self) -> bool:
        """True where hidden states can differ from the backbone's by what was trained."""

    @abstractmethod
    def gate_mean(self) -> float:
        """Return the mean share of the memory in the fusion; 0 without one."""

    def places_read(self, output: ReadingOutput, row: int) -> PlacesRead | None:
        """Return the places that each token of a row copies from, or attends to where nothing is copied; None where
        nothing was read."""
        reading, copies = output.readings[row], output.copies[row]
        if reading is None:
            return None
        index = reading.places.index.flatten(1)
        if copies is not None:
            if copies.repeated is not None:
                index = torch.cat([index, copies.repeated.index], dim=1)
            return PlacesRead(index, copies.weights, copies.share, continued=True)
        if reading.attended is None:
            return None
        weights = self.reader.attention_weights(reading)
        return PlacesRead(index, weights, torch.zeros(len(index)), continued=self.config.values == "next")

    def _read(
        self,
        queries: Float[Tensor, "batch tokens heads head_dim"] | None,
        given: ReadingInput,
        search: AbstractChunkSearch,
        *,
        attends: bool = True,
    ) -> list[RetrievedMemory | None]:
        """Return the reading of each row. Rows of one view share a search: a token's reading depends on no other
        token.

        `queries` are those of a SideNet; None where the keys themselves ask. Without `attends`, no values are read.
        """
        rows_of: dict[int, list[int]] = {}
        for row, view in enumerate(given.views):
            if view is not None and view.num_chunks:
                rows_of.setdefault(id(view), []).append(row)
        readings: list[RetrievedMemory | None] = [None] * len(given.views)
        for rows in rows_of.values():
            view = given.views[rows[0]]
            assert view is not None, "only rows with a view were collected"
            own = given.keys[rows].to(view.keys.device).flatten(0, 1)
            asked = own if queries is None else queries[rows].flatten(0, 1)
            joined = self.reader.read(asked, own, view, search, attends=attends)
            if joined is not None:
                for row, reading in zip(rows, joined.split(given.tokens.shape[1]), strict=True):
                    readings[row] = reading
        return readings

    def _copies(
        self, given: ReadingInput, hidden: Tensor, readings: list[RetrievedMemory | None]
    ) -> list[Copies | None]:
        if self.copy_head is None:
            return [None] * len(readings)
        context = given.tokens if given.before is None else torch.cat([given.before, given.tokens], dim=1)
        return [
            None if reading is None or view is None else self.copy_head(reading, view, hidden[row], context[row])
            for row, (reading, view) in enumerate(zip(readings, given.views, strict=True))
        ]
