# SPDX-License-Identifier: Apache-2.0
"""Reader's copy of the recent past of one document, laid out so that every view is a slice without a copy.

    dropped            kept by the buffer                     free
    ├────────────┼──────────────────────────────┼───────────────────────┤
                 │    view = [start, end)       │
                 └ oldest chunk kept            └ num_chunks            └ capacity

Arrays are written only after the last chunk and never moved. When they are full, new ones are allocated with the chunks
still wanted, so existing views stay valid. Each token is copied at most three times in its life, and memory is bounded
by `retain_tokens` regardless of the length of the document.

A memory of all layers has these arrays for the searched layer alone. Keys and values of all layers are `LayerStates`.
"""

import torch
from torch import Tensor

from longmem.dtypes import to_tensor
from longmem.kv_format import unpack
from longmem.memory.key_transform import KeySpace
from longmem.memory.layer_states import LayerStates
from longmem.memory.stored_rows import AbstractRows, RowFile, TensorRows
from longmem.memory.view import MemoryView
from longmem.retrieval.ivf_index import Cells, KeyCells, cover
from longmem.retrieval.low_rank_bound import KeySketch, SketchBasis, fit_basis
from longmem.retrieval.repeats import GrowingRepeats
from longmem.system.allocator import zeros_in_pages
from longmem.types import KVArray, KVBlock

RAW_KEYS = KeySpace()
"""Stored keys without a transform, searched per head."""

GROWTH = 1.5
"""Ratio of capacity to content of new arrays. It costs 50% more memory and limits the copies of a token to three."""

SKETCHED_CHUNKS = 2048
"""Smallest memory that gets a sketch, in chunks. Shorter ones are cheap to search and too small to fit a basis."""

FITTED_CHUNKS = 4096
"""Largest number of chunks, spread over the memory, that a basis is fitted to; also the batch size of their
projection."""


class WindowBuffer:
    """Chunks of consecutive blocks of one document. Not thread-safe: each reader has its own."""

    def __init__(self, retain_tokens: int, device: torch.device | str = "cpu", key_space: KeySpace = RAW_KEYS) -> None:
        self._retain_tokens = retain_tokens
        self._key_space = key_space
        self._device = torch.device(device)
        self._arrays: dict[str, Tensor] = {}
        self._layers: dict[str, LayerStates] = {}
        """Keys and values of all layers, as views name them; their last row is that of the last chunk."""
        self._file: RowFile | None = None
        """File of these keys and values, where they are not on another device."""
        self._basis: SketchBasis | None = None
        self._cells: dict[tuple[int, int], Cells] = {}
        """Cells of each stretch, by its first token and length."""
        self._repeats = GrowingRepeats()
        self._dropped_places = 0
        """Number of tokens that are no longer kept."""
        self._num_chunks = 0
        self.start_token: int | None = None
        """Position from which on every token is kept; None while empty."""
        self.end_token: int | None = None
        """Position after the newest token."""
        self._next_start: int | None = None
        """Position where the next segment begins; beyond `end_token` after a block that did not fill its segment."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the window, in memory and in its file."""
        arrays = sum(array.nbytes for array in self._arrays.values())
        cells = sum(cells.num_bytes for cells in self._cells.values())
        return arrays + cells + self._repeats.num_bytes + self._layer_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of the window in its file."""
        return 0 if self._file is None else self._layer_bytes

    @property
    def _layer_bytes(self) -> int:
        return sum(states.num_bytes for states in self._layers.values())

    def append(self, block: KVBlock) -> None:
        """Add the block of the next segment.

        A block may be shorter than its segment: memory stored in whole examples leaves positions free, and the next
        stored token is the next token read.
        """
        assert self.end_token is None or block.start_token in (self.end_token, self._next_start), (
            f"{block.key}: expected the block at {self.end_token}, got one at {block.start_token}"
        )
        chunks = _chunks_of(block, self._device, self._key_space)
        added = len(chunks["starts"])
        if not self._arrays or self._num_chunks + added > len(self._arrays["starts"]):
            self._renew(chunks, added, block.end_token)
        if self._basis is not None:
            chunks["sketch"] = self._basis.place_keys(self._chunk_keys(chunks))
        for name, array in self._arrays.items():
            axis = _CHUNK_AXIS[name]
            array.narrow(axis, self._num_chunks, added).copy_(chunks[name])
        self._num_chunks += added
        self.end_token = block.end_token
        self._next_start = block.start_token + block.fingerprint.segment_tokens
        if self.start_token is None:
            self.start_token = block.start_token
        if self._key_space.layer is not None:
            self._append_layers(block)

    def _append_layers(self, block: KVBlock) -> None:
        """Take the block's layers, and drop those of blocks that no window reaches any more."""
        assert self.end_token is not None, "after its chunks"
        starts = self._arrays["starts"][: self._num_chunks]
        wanted = self._num_chunks - int(torch.searchsorted(starts, max(self.end_token - self._retain_tokens, 0)))
        for name, stored in (("layer_keys", block.keys), ("layer_values", block.values)):
            if name in self._layers:
                # dropped first, so that the new block may take the space of an old one
                self._layers[name] = self._layers[name].newest(wanted - block.num_tokens)
            states = LayerStates([self._rows_of(stored)])
            self._layers[name] = self._layers[name] + states if name in self._layers else states
        if (dropped := self._num_chunks - len(self._layers["layer_keys"])) > 0:
            self.start_token = int(starts[dropped - 1]) + 1

    def _rows_of(self, stored: KVArray) -> AbstractRows:
        """Return a copy of stored keys or values: in a file, or in the memory of a device that is not the host."""
        if self._device.type != "cpu":
            return TensorRows(to_tensor(stored, self._device))
        if self._file is None:
            self._file = RowFile()
        return self._file.add(stored)

    def view(self, start_token: int, end_token: int) -> MemoryView:
        """Return the chunks wholly inside `[start_token, end_token)`. The buffer must hold the whole interval (see
        `covers`)."""
        assert self.covers(start_token, end_token), (
            f"asked for [{start_token}, {end_token}), the buffer holds [{self.start_token}, {self.end_token})"
        )
        first, last = self._chunks_between(start_token, end_token)
        parts = {name: array.narrow(_CHUNK_AXIS[name], first, last - first) for name, array in self._arrays.items()}
        rows = parts.pop("sketch", None)
        sketch = None if self._basis is None or rows is None else KeySketch(self._basis, rows)
        cells = self._cells_in(start_token, end_token, first) if self._key_space.celled else None
        parts["chunk_keys"] = self._chunk_keys(parts)
        parts |= {name: parts[name].permute(2, 0, 1, 3) for name in ("keys", "values")}
        return MemoryView(
            **parts,
            layer_keys=self._layer_rows("layer_keys", first, last),
            layer_values=self._layer_rows("layer_values", first, last),
            sketch=sketch,
            cells=cells,
            end_token=end_token,
            growing_repeats=self._repeats,
            first_place=self._dropped_places + self._num_places(first),
        )

    def _layer_rows(self, name: str, first: int, last: int) -> LayerStates | None:
        """Return keys or values of all layers of the chunks `[first, last)`; None for a memory of one layer."""
        if (states := self._layers.get(name)) is None:
            return None
        dropped = self._num_chunks - len(states)
        return states.rows(first - dropped, last - dropped)

    def _num_places(self, num_chunks: int) -> int:
        """Return the number of tokens in the oldest chunks."""
        return int(self._arrays["lengths"][:num_chunks].sum())

    def _chunk_keys(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return the chunk keys of arrays, or of parts of them. Where a chunk is one token they are its keys, stored
        once."""
        if "chunk_keys" in arrays:
            return arrays["chunk_keys"]
        return self._key_space.searched(arrays["keys"][:, 0].transpose(0, 1))

    def _chunks_between(self, start_token: int, end_token: int) -> tuple[int, int]:
        starts = self._arrays["starts"][: self._num_chunks]
        ends = starts + self._arrays["lengths"][: self._num_chunks]
        first = int(torch.searchsorted(starts, start_token))
        return first, max(first, int(torch.searchsorted(ends, end_token, right=True)))

    def covers(self, start_token: int, end_token: int) -> bool:
        """Return True if every stored token of the interval is in the buffer."""
        if self.start_token is None or self.end_token is None:
            return False
        return self.start_token <= start_token and end_token <= self.end_token

    def _cells_in(self, start_token: int, end_token: int, first_chunk: int) -> KeyCells:
        """Return the cells of the stretches that cover the interval; each stretch is clustered on first use.

        A chunk belongs to the stretch in which it begins. No stretch ends after a view that holds it, because chunks
        and views end with segments.
        """
        covered = cover(start_token, end_token)
        tokens = torch.tensor([(first, first + length) for first, length in covered]).view(-1, 2)
        bounds = torch.searchsorted(self._arrays["starts"][: self._num_chunks], tokens.to(self._device)).tolist()
        stretches = []
        for stretch, (first, last) in zip(covered, bounds, strict=True):
            if first == last:
                continue
            if stretch not in self._cells:
                # imported here, because only an approximate search needs FAISS
                from longmem.retrieval.faiss_search import make_cells

                self._cells[stretch] = make_cells(self._chunk_keys(self._arrays)[:, first:last])
            stretches.append((first - first_chunk, self._cells[stretch]))
        return KeyCells(tuple(stretches))

    def _renew(self, chunks: dict[str, Tensor], added: int, end_token: int) -> None:
        kept_from = 0
        if self._arrays:
            starts = self._arrays["starts"][: self._num_chunks]
            kept_from = int(torch.searchsorted(starts, max(end_token - self._retain_tokens, 0)))
            self._dropped_places += self._num_places(kept_from)
            if kept_from:
                self.start_token = int(starts[kept_from - 1] + self._arrays["lengths"][kept_from - 1])
        kept = self._num_chunks - kept_from
        capacity = int((kept + added) * GROWTH) + 1
        fresh = {}
        self._basis = None
        self._arrays.pop("sketch", None)
        for name, like in chunks.items():
            axis = _CHUNK_AXIS[name]
            size = list(like.shape)
            size[axis] = capacity
            fresh[name] = _zeros(size, like.dtype, like.device)
            # remove it from the buffer first: where no view holds it, only one array exists twice at a time
            old = self._arrays.pop(name, None)
            if old is not None:
                fresh[name].narrow(axis, 0, kept).copy_(old.narrow(axis, kept_from, kept))
        if self._key_space.sketched and kept >= SKETCHED_CHUNKS:
            # refit the basis: a longer past represents the keys better
            searched = self._chunk_keys(fresh)[:, :kept]
            sample = searched[:, :: -(-kept // FITTED_CHUNKS)].float()
            self._basis = fit_basis(sample, self._key_space.asked(sample))
            if self._basis is not None:
                size = [len(searched), capacity, self._basis.columns]
                fresh["sketch"] = _zeros(size, torch.float32, searched.device)
                for first in range(0, kept, FITTED_CHUNKS):
                    part = searched[:, first : first + FITTED_CHUNKS]
                    fresh["sketch"][:, first : first + part.shape[1]] = self._basis.place_keys(part)
        self._arrays = fresh
        self._num_chunks = kept
        oldest = self.start_token or 0
        self._cells = {stretch: cells for stretch, cells in self._cells.items() if stretch[0] >= oldest}


def _zeros(size: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: padding must never be NaN, and unwritten pages cost nothing."""
    return zeros_in_pages(size, dtype) if device.type == "cpu" else torch.zeros(size, dtype=dtype, device=device)


_CHUNK_AXIS = {"chunk_keys": 1, "sketch": 1, "keys": 0, "values": 0, "tokens": 0, "starts": 0, "lengths": 0}


def _chunks_of(block: KVBlock, device: torch.device | str, key_space: KeySpace) -> dict[str, Tensor]:
    """Return a block of the searched layer in its stored form: keys and values [chunks, chunk, kv_heads, head_dim].

    The last chunk is padded with zeros; its length counts the real tokens.
    """
    chunk, kv_dtype = block.fingerprint.chunk_tokens, block.fingerprint.kv_dtype
    num_chunks = -(-block.num_tokens // chunk)
    padding = num_chunks * chunk - block.num_tokens
    starts = block.start_token + chunk * torch.arange(num_chunks)
    lengths = torch.full((num_chunks,), chunk)
    lengths[-1] -= padding

    def by_chunk(tensor: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, padding))
        rows: Tensor = padded.unflatten(0, (num_chunks, chunk))
        return rows

    first = (key_space.layer or 0) * block.fingerprint.kv_heads
    heads = slice(first, first + block.fingerprint.kv_heads)
    keys = by_chunk(key_space.transform(unpack(block.keys[:, heads], kv_dtype)))
    parts = {
        "keys": keys,
        "values": by_chunk(unpack(block.values[:, heads], kv_dtype)),
        "tokens": torch.nn.functional.pad(to_tensor(block.tokens), (0, padding)).unflatten(0, (num_chunks, chunk)),
        "starts": starts,
        "lengths": lengths,
    }
    if chunk > 1:
        means = keys.float().sum(dim=1) / lengths[:, None, None]
        parts["chunk_keys"] = key_space.searched(means.transpose(0, 1))
    return {name: part.to(device) for name, part in parts.items()}
