# SPDX-License-Identifier: Apache-2.0
"""Windows of a document's past against the definition: every whole chunk in the interval, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem.dtypes import to_array
from longmem.errors import CorruptionError, MissingBlockError
from longmem.kv_format import pack, rounded
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.memory.window import WindowBuffer
from longmem.memory.window_cache import READ_SEGMENTS, WindowCache
from longmem.retrieval.repeats import RepeatIndex
from longmem.store.base import missing_blocks, with_more
from longmem.store.source import AbstractBlockSource
from longmem.stored_format import STORED_TYPES, blocks_at_once
from longmem.types import DocumentKey, Fingerprint, KVBlock
from tests.blocks import make_block

KEY = DocumentKey("default", "book")
KV_HEADS, HEAD_DIM = 2, 3
BYTES_PER_TOKEN = 2 * KV_HEADS * HEAD_DIM * 4 + 4  # keys and values in float32, and the token id

NaiveView = Callable[..., MemoryView | None]

MEAN = torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.0, -0.5]])
KEY_SPACES = {
    "raw, per head": KeySpace(),
    "raw, joint": KeySpace("raw", "joint"),
    "centred, per head": KeySpace("centred", "per_head", MEAN),
    "unit, per head": KeySpace("unit", "per_head", MEAN),
    "unit, joint": KeySpace("unit", "joint", MEAN),
}


def block_at(
    start: int,
    length: int,
    chunk: int,
    *,
    key: DocumentKey = KEY,
    segment: int = 0,
    segment_tokens: int = 64,
    kv_dtype: str = "float32",
) -> KVBlock:
    """Return random content as a function of document and position."""
    random = np.random.default_rng([start, sum(map(ord, str(key)))])
    shape = (length, KV_HEADS, HEAD_DIM)
    keys, values = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    if kv_dtype == "bfloat16":
        keys, values = (to_array(torch.from_numpy(array).bfloat16()) for array in (keys, values))
    else:
        keys, values = (array.astype(STORED_TYPES[kv_dtype]) for array in (keys, values))
    fingerprint = Fingerprint(
        backbone="b",
        tokenizer="t",
        memory_layer=3,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        chunk_tokens=chunk,
        segment_tokens=segment_tokens,
        compute_dtype="float32",
        kv_dtype=kv_dtype,
    )
    return KVBlock(
        key=key,
        segment=segment,
        start_token=start,
        tokens=random.integers(0, 50_000, length).astype(np.int32),
        keys=keys,
        values=values,
        fingerprint=fingerprint,
    )


def consecutive(lengths: Sequence[int], chunk: int, start: int = 0) -> list[KVBlock]:
    starts = np.cumsum([start, *lengths])[:-1]
    return [block_at(int(first), length, chunk) for first, length in zip(starts, lengths, strict=True)]


def same(found: MemoryView | None, expected: MemoryView | None) -> None:
    if found is None or expected is None:
        assert expected is None
        assert found is None or found.num_chunks == 0
        return
    assert found.end_token == expected.end_token
    for name in ("starts", "lengths", "tokens", "keys", "values"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), f"{name}: {one} != {other}"
    torch.testing.assert_close(found.chunk_keys, expected.chunk_keys, rtol=0, atol=1e-6)
    assert found.num_tokens == expected.num_tokens


PARTS = ("chunk_keys", "keys", "values", "tokens", "starts", "lengths")


def copied(view: MemoryView) -> MemoryView:
    return replace(view, **{name: getattr(view, name).clone() for name in PARTS})


def identical(one: MemoryView, other: MemoryView) -> bool:
    parts = all(torch.equal(getattr(one, name), getattr(other, name)) for name in PARTS)
    return one.end_token == other.end_token and one.sketch is other.sketch and parts


# ---- WindowBuffer


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=12),
    chunk=st.integers(1, 5),
    retain_chunks=st.integers(0, 12),
    start_chunks=st.integers(0, 3),
    key_space=st.sampled_from(list(KEY_SPACES.values())),
    data=st.data(),
)
def test_buffer_holds_every_whole_chunk_of_its_window(
    naive_view: NaiveView,
    lengths: list[int],
    chunk: int,
    retain_chunks: int,
    start_chunks: int,
    key_space: KeySpace,
    data: st.DataObject,
) -> None:
    retain = retain_chunks * chunk
    blocks = consecutive(lengths, chunk, start_chunks * chunk)
    buffer = WindowBuffer(retain, key_space=key_space)
    assert buffer.start_token is None
    assert not buffer.covers(0, 0)
    held = []
    for index, block in enumerate(blocks):
        buffer.append(block)
        past = blocks[: index + 1]
        assert buffer.start_token is not None
        assert buffer.end_token == block.end_token
        oldest = max(block.end_token - retain, past[0].start_token)
        # the window itself: where it begins inside a chunk, that chunk is not in it
        view = buffer.view(max(oldest, buffer.start_token), block.end_token)
        same(view, naive_view(past, oldest, block.end_token, key_space))
        held.append((view, copied(view)))
        # any shorter interval that ends where a block ended
        end = data.draw(st.sampled_from([each.end_token for each in past if each.end_token >= buffer.start_token]))
        start = data.draw(st.integers(buffer.start_token, end))
        assert buffer.covers(start, end)
        assert not buffer.covers(start, block.end_token + 1)
        assert not buffer.covers(buffer.start_token - 1, end)
        same(buffer.view(start, end), naive_view(past, start, end, key_space))
    for view, before in held:
        assert identical(view, before), "a view that someone holds has changed"


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    chunk=st.integers(1, 5),
    start=st.integers(0, 45),
    length=st.integers(0, 45),
)
def test_no_view_reaches_beyond_its_end(
    naive_view: NaiveView, lengths: list[int], chunk: int, start: int, length: int
) -> None:
    """Check chunks for any end: they lie wholly in [start, end), because a token at or after it would be the future."""
    blocks = consecutive(lengths, chunk)
    buffer = WindowBuffer(64)
    for block in blocks:
        buffer.append(block)
    end = min(start + length, blocks[-1].end_token)
    start = min(start, end)
    view = buffer.view(start, end)
    assert bool((view.starts >= start).all())
    assert bool((view.starts + view.lengths <= end).all())
    same(view, naive_view(blocks, start, end))


def test_buffer_refuses_a_gap_and_an_interval_it_does_not_hold() -> None:
    buffer = WindowBuffer(16)
    buffer.append(block_at(8, 8, 4))
    for start in (0, 8, 12, 20):
        with pytest.raises(AssertionError, match="expected the block at 16"):
            buffer.append(block_at(start, 8, 4))
    for interval in ((0, 16), (8, 20), (16, 17)):
        with pytest.raises(AssertionError, match="asked for"):
            buffer.view(*interval)
    assert buffer.view(8, 16).num_tokens == 8


def test_a_block_may_leave_the_end_of_its_segment_free(naive_view: NaiveView) -> None:
    """Check blocks of whole examples, which rarely fill a segment; the next token stored is the next position."""
    size = make_block().fingerprint.segment_tokens
    blocks = [make_block(segment=index, num_tokens=count) for index, count in enumerate((size, 5, size - 1, 2))]
    buffer = WindowBuffer(64 * size)
    for block in blocks:
        buffer.append(block)
    view = buffer.view(0, blocks[-1].end_token)
    same(view, naive_view(blocks, 0, blocks[-1].end_token))
    assert view.num_tokens == size + 5 + size - 1 + 2
    with pytest.raises(AssertionError, match="expected the block at"):
        buffer.append(make_block(segment=5))


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", KEY_SPACES)
def test_view_in_any_key_space(name: str, kv_dtype: str, naive_view: NaiveView) -> None:
    """Check that only keys and chunk keys are transformed, and padding stays zero."""
    blocks = [block_at(0, 8, 4, kv_dtype=kv_dtype), block_at(8, 6, 4, kv_dtype=kv_dtype)]
    raw, buffer = WindowBuffer(64), WindowBuffer(64, key_space=KEY_SPACES[name])
    for block in blocks:
        raw.append(block)
        buffer.append(block)
    view, stored = buffer.view(0, 14), raw.view(0, 14)
    same(view, naive_view(blocks, 0, 14, KEY_SPACES[name]))
    for part in ("values", "tokens", "starts", "lengths"):
        assert torch.equal(getattr(view, part), getattr(stored, part)), part
    assert view.keys.dtype == stored.keys.dtype
    assert (view.keys[:, 3, 2:] == 0).all(), "padding holds zeros, not the negative mean"
    joint = KEY_SPACES[name].retrieval == "joint"
    assert view.chunk_keys.shape == ((1, 4, KV_HEADS * HEAD_DIM) if joint else (KV_HEADS, 4, HEAD_DIM))


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
def test_partial_last_chunk(kv_dtype: str, naive_view: NaiveView) -> None:
    blocks = [block_at(0, 8, 4, kv_dtype=kv_dtype), block_at(8, 6, 4, kv_dtype=kv_dtype)]
    buffer = WindowBuffer(64)
    for block in blocks:
        buffer.append(block)
    view = buffer.view(0, 14)
    same(view, naive_view(blocks, 0, 14))
    assert view.starts.tolist() == [0, 4, 8, 12]
    assert view.lengths.tolist() == [4, 4, 4, 2]
    assert view.num_tokens == 14
    for part in (view.keys[:, 3, 2:], view.values[:, 3, 2:], view.tokens[3, 2:]):
        assert (part == 0).all(), "padding holds zeros"
    mean = torch.stack([view.keys[:, 3, position].double() for position in range(2)]).mean(dim=0)
    torch.testing.assert_close(view.chunk_keys[:, 3].double(), mean, rtol=0, atol=1e-6)
    # tokens after a partial chunk begin a new chunk
    buffer.append(block_at(14, 4, 4, kv_dtype=kv_dtype))
    assert buffer.view(0, 18).starts.tolist() == [0, 4, 8, 12, 14]
    assert buffer.view(13, 18).starts.tolist() == [14]
    assert identical(buffer.view(0, 14), view)


@pytest.mark.parametrize("name", KEY_SPACES)
def test_int8_blocks_make_the_view_of_their_rounded_numbers(name: str) -> None:
    exact = block_at(0, 14, 4)
    keys, values = torch.from_numpy(exact.keys), torch.from_numpy(exact.values)
    views = []
    for kv_dtype, parts in (
        ("int8", [pack(part, "int8") for part in (keys, values)]),
        ("float16", [to_array(rounded(part, "int8")) for part in (keys, values)]),
    ):
        buffer = WindowBuffer(64, key_space=KEY_SPACES[name])
        fingerprint = replace(exact.fingerprint, kv_dtype=kv_dtype)
        buffer.append(replace(exact, keys=parts[0], values=parts[1], fingerprint=fingerprint))
        views.append(buffer.view(0, 14))
    assert identical(*views)


def test_views_are_slices_not_copies() -> None:
    buffer = WindowBuffer(1000)
    for block in consecutive([40] * 5, 4):
        buffer.append(block)
    one, other = buffer.view(0, 200), buffer.view(40, 200)
    assert one.keys.untyped_storage().data_ptr() == other.keys.untyped_storage().data_ptr()
    for part in (one.keys, one.values):
        assert part.flatten(1, 2).data_ptr() == part.data_ptr(), "read in place, token by token"


@pytest.mark.parametrize("name", KEY_SPACES)
@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "bfloat16"])
def test_keys_of_chunks_of_one_token_are_kept_once(kv_dtype: str, name: str, naive_view: NaiveView) -> None:
    """Check that keys of one-token chunks are searched directly, in their own dtype, after any reallocation."""
    buffer = WindowBuffer(100, key_space=KEY_SPACES[name])
    blocks = [block_at(40 * index, 40, 1, kv_dtype=kv_dtype) for index in range(7)]
    for block in blocks:
        buffer.append(block)
    view = buffer.view(180, 280)
    same(view, naive_view(blocks, 180, 280, KEY_SPACES[name]))
    assert view.chunk_keys.dtype == view.keys.dtype
    assert view.chunk_keys.data_ptr() == view.keys.data_ptr()
    assert view.chunk_keys.stride(2) == 1, "rows to search lie as they are"
    numbers = 2 * KV_HEADS * HEAD_DIM * view.keys.element_size()
    assert buffer.num_bytes <= 1.5 * (100 + 40 + 1) * (numbers + 4 + 16)


def test_memory_of_a_long_document_is_bounded_and_copying_is_too(monkeypatch: pytest.MonkeyPatch) -> None:
    retain, length, chunk, number = 320, 16, 4, 200
    per_chunk = chunk * BYTES_PER_TOKEN + KV_HEADS * HEAD_DIM * 4 + 16  # and its mean key, start and length
    buffer = WindowBuffer(retain)
    renewed: list[int] = []
    original = WindowBuffer._renew

    def counted(self: WindowBuffer, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        renewed.append(self._num_chunks)

    monkeypatch.setattr(WindowBuffer, "_renew", counted)
    largest = 0
    for index in range(number):
        buffer.append(block_at(index * length, length, chunk))
        largest = max(largest, buffer.num_bytes)
        assert buffer.covers(max(0, (index + 1) * length - retain), (index + 1) * length)
    assert largest <= 1.5 * (retain + length) / chunk * per_chunk + 2 * per_chunk
    assert sum(renewed) * chunk <= 2 * number * length, "a token is copied at most twice after it was written"


# ---- WindowCache


class DictSource(AbstractBlockSource):
    """Source that holds its blocks in a dictionary and records the reads."""

    def __init__(self, blocks: Sequence[KVBlock] = ()) -> None:
        self.blocks = {(block.key, block.segment): block for block in blocks}
        self.reads: list[tuple[DocumentKey, int]] = []

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        wanted = range(first_segment, last_segment)
        found = [segment for segment in wanted if (key, segment) in self.blocks]
        if len(found) < len(wanted):
            raise missing_blocks(key, wanted, found)
        wanted = with_more(wanted, ahead, [segment for of, segment in self.blocks if of == key])
        assert 0 < len(wanted) <= READ_SEGMENTS
        self.reads += [(key, segment) for segment in wanted]
        return [self.blocks[key, segment] for segment in wanted]


def segments_of(
    name: str, count: int, segment_tokens: int, chunk: int, last: int | None = None, namespace: str = "default"
) -> list[KVBlock]:
    key = DocumentKey(namespace, name)
    lengths = [segment_tokens] * (count - 1) + [last or segment_tokens]
    return [
        block_at(i * segment_tokens, n, chunk, key=key, segment=i, segment_tokens=segment_tokens)
        for i, n in enumerate(lengths)
    ]


@settings(max_examples=60)
@given(
    chunk=st.integers(1, 4),
    segment_chunks=st.integers(1, 4),
    memory_chunks=st.integers(0, 14),
    documents=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=3),
    max_bytes=st.sampled_from([0, 3000, 2**30]),
    key_space=st.sampled_from([KEY_SPACES["raw, per head"], KEY_SPACES["unit, joint"]]),
    data=st.data(),
)
def test_cache_gives_the_window_of_any_segment_in_any_order(
    naive_view: NaiveView,
    chunk: int,
    segment_chunks: int,
    memory_chunks: int,
    documents: list[tuple[int, bool]],
    max_bytes: int,
    key_space: KeySpace,
    data: st.DataObject,
) -> None:
    segment_tokens, memory_tokens = segment_chunks * chunk, memory_chunks * chunk
    stored = {
        # also of one name in two namespaces
        DocumentKey(f"namespace-{index % 2}", f"book-{index // 2}"): segments_of(
            f"book-{index // 2}", count, segment_tokens, chunk, 1 if short else None, f"namespace-{index % 2}"
        )
        for index, (count, short) in enumerate(documents)
    }
    source = DictSource([block for blocks in stored.values() for block in blocks])
    cache = WindowCache(source, segment_tokens, memory_tokens, max_bytes, key_space=key_space)
    everything = [(key, segment) for key, blocks in stored.items() for segment in range(len(blocks))]
    ascending = data.draw(st.booleans())
    order = everything if ascending else data.draw(st.lists(st.sampled_from(everything), min_size=1, max_size=15))
    held = []
    for key, segment in order:
        end = segment * segment_tokens
        view = cache.view(key, segment)
        same(view, naive_view(stored[key], max(0, end - memory_tokens), end, key_space))
        if view is not None:
            assert view.num_tokens == min(end, memory_tokens)
            held.append((view, copied(view)))
        assert len(cache._buffers) <= 1 or cache.num_bytes <= max_bytes
    for view, before in held:
        assert identical(view, before), "a view that someone holds has changed"
    if ascending and memory_tokens and max_bytes == 2**30:
        assert len(source.reads) == len(set(source.reads)), "in ascending order every block is read once"


def test_nothing_before_the_first_segment_and_nothing_without_memory() -> None:
    source = DictSource(segments_of("book", 4, 8, 4))
    assert WindowCache(source, 8, 16).view(KEY, 0) is None
    assert WindowCache(source, 8, 0).view(KEY, 3) is None
    assert WindowCache(DictSource(), 8, 16).view(KEY, 0) is None
    assert source.reads == []


def test_only_the_window_is_read_not_the_whole_past() -> None:
    source = DictSource(segments_of("book", 39, 8, 4))
    cache = WindowCache(source, 8, 32)
    view = cache.view(KEY, 39)
    assert view is not None
    assert (int(view.starts[0]), view.end_token, view.num_tokens) == (39 * 8 - 32, 39 * 8, 32)
    assert [segment for _, segment in source.reads] == [35, 36, 37, 38]


def test_what_is_stored_ahead_is_read_with_the_window_and_not_seen(naive_view: NaiveView) -> None:
    blocks = segments_of("book", 40, 8, 4)
    source = DictSource([block for block in blocks if block.segment != 25])
    cache = WindowCache(source, 8, 32)
    same(cache.view(KEY, 20), naive_view(blocks, 128, 160))
    assert [segment for _, segment in source.reads] == list(range(16, 24)), "eight at a time"
    for segment in (21, 22, 23, 24):
        same(cache.view(KEY, segment), naive_view(blocks, 8 * segment - 32, 8 * segment))
    assert len(source.reads) == 8
    same(cache.view(KEY, 25), naive_view(blocks, 168, 200))
    assert source.reads[8:] == [(KEY, 24)], "nothing behind a gap"


@pytest.mark.parametrize(("block_bytes", "expected"), [(0, 8), (2**22, 8), (2**24, 4), (2**26, 1), (2**30, 1)])
def test_large_blocks_are_read_few_at_a_time(block_bytes: int, expected: int) -> None:
    assert blocks_at_once(block_bytes, READ_SEGMENTS) == expected


def test_large_blocks_need_no_room_for_those_read_ahead(naive_view: NaiveView) -> None:
    """Check a cache that reads one block at a time: its windows have no token more than a segment reads."""
    blocks = segments_of("book", 40, 8, 4)
    source = DictSource(blocks)
    cache = WindowCache(source, 8, 32, read_segments=1)
    for segment in range(40):
        same(cache.view(KEY, segment), naive_view(blocks, max(0, 8 * segment - 32), 8 * segment))
    assert [segment for _, segment in source.reads] == list(range(39)), "each once, none ahead"
    assert cache._buffers[KEY]._retain_tokens == 32


def test_a_window_that_begins_inside_a_segment(naive_view: NaiveView) -> None:
    blocks = segments_of("book", 9, 16, 4)
    cache = WindowCache(DictSource(blocks), 16, 20)
    for segment in (8, 1, 5, 6, 2):
        view = cache.view(KEY, segment)
        same(view, naive_view(blocks, max(0, segment * 16 - 20), segment * 16))


def test_a_missing_block_is_an_error_and_leaves_nothing_behind(naive_view: NaiveView) -> None:
    blocks = segments_of("book", 30, 8, 4)
    source = DictSource([block for block in blocks if block.segment != 17])
    cache = WindowCache(source, 8, 200)
    assert cache.view(KEY, 10) is not None
    for _ in range(2):
        with pytest.raises(MissingBlockError, match="17"):
            cache.view(KEY, 25)
    source.blocks[KEY, 17] = blocks[17]
    same(cache.view(KEY, 25), naive_view(blocks, 0, 200))
    with pytest.raises(MissingBlockError, match="default/book"):
        cache.view(KEY, 31)
    same(cache.view(KEY, 25), naive_view(blocks, 0, 200))


class DamagedSource(DictSource):
    """Source with one damaged block."""

    def __init__(self, blocks: Sequence[KVBlock], damaged: int) -> None:
        super().__init__(blocks)
        self.damaged = damaged

    def read(self, key: DocumentKey, first_segment: int, last_segment: int, *, ahead: int = 0) -> list[KVBlock]:
        blocks = super().read(key, first_segment, last_segment, ahead=ahead)
        if any(block.segment == self.damaged for block in blocks):
            raise CorruptionError(f"segment {self.damaged}")
        return blocks


def test_a_damaged_block_troubles_only_those_who_need_it(naive_view: NaiveView) -> None:
    """Check a damaged last block, which no segment needs: read-ahead of it must not raise."""
    blocks = segments_of("book", 12, 8, 4)
    cache = WindowCache(DamagedSource(blocks, 7), 8, 32)
    for segment in range(8):
        same(cache.view(KEY, segment), naive_view(blocks, max(0, 8 * segment - 32), 8 * segment))
    with pytest.raises(CorruptionError, match="segment 7"):
        cache.view(KEY, 8)
    same(cache.view(KEY, 12), naive_view(blocks, 64, 96))


def test_the_document_read_longest_ago_goes_first(naive_view: NaiveView) -> None:
    names = ("a", "b", "c")
    stored = {name: segments_of(name, 8, 8, 4) for name in names}
    keys = {name: DocumentKey("default", name) for name in names}
    source = DictSource([block for blocks in stored.values() for block in blocks])
    one = WindowCache(source, 8, 64)
    one.view(keys["a"], 7)
    cache = WindowCache(source, 8, 64, max_bytes=2 * one.num_bytes)
    for name in ("a", "b", "a", "c"):  # b is the least recently read
        same(cache.view(keys[name], 7), naive_view(stored[name], 0, 56))
    assert cache.num_bytes <= 2 * one.num_bytes
    source.reads.clear()
    cache.view(keys["a"], 7)
    cache.view(keys["c"], 7)
    assert source.reads == []
    cache.view(keys["b"], 7)
    assert len(source.reads) == 8


def test_the_document_being_read_stays_however_small_the_cache(naive_view: NaiveView) -> None:
    stored = {name: segments_of(name, 8, 8, 4) for name in ("a", "b")}
    source = DictSource([block for blocks in stored.values() for block in blocks])
    cache = WindowCache(source, 8, 64, max_bytes=0)
    for segment in range(8):
        same(cache.view(DocumentKey("default", "a"), segment), naive_view(stored["a"], 0, segment * 8))
    assert len(source.reads) == 8
    assert cache.num_bytes > 0
    same(cache.view(DocumentKey("default", "b"), 3), naive_view(stored["b"], 0, 24))
    source.reads.clear()
    cache.view(DocumentKey("default", "a"), 7)
    assert len(source.reads) == 8, "a was dropped when b was read"


def test_a_forgotten_document_is_read_anew(naive_view: NaiveView) -> None:
    source = DictSource(segments_of("book", 4, 8, 4))
    cache = WindowCache(source, 8, 64)
    held = cache.view(KEY, 3)
    assert held is not None
    before = copied(held)
    cache.evict(KEY)
    cache.evict(KEY)
    assert cache.num_bytes == 0
    # another document with this name
    changed = [replace(block, keys=block.keys[::-1], tokens=block.tokens[::-1]) for block in source.blocks.values()]
    source.blocks = {(block.key, block.segment): block for block in changed}
    same(cache.view(KEY, 3), naive_view(changed, 0, 24))
    assert identical(held, before)


# ---- the index of repeats


@pytest.mark.parametrize("chunk", [1, 4])
def test_views_share_an_index_of_repeats_that_grows(chunk: int) -> None:
    """Check the repeats of every view against an index of that view alone, while the buffer drops what is old."""
    retain, length = 100, 22
    buffer = WindowBuffer(retain)
    context = torch.tensor([1, 2, 3, 1, 2, 3, 1, 2])
    views = []
    for index in range(40):
        block = block_at(index * length, length, chunk)
        tokens = np.random.default_rng(index).integers(1, 4, length).astype(np.int32)
        buffer.append(replace(block, tokens=tokens))
        end = (index + 1) * length
        assert buffer.start_token is not None
        views.append(buffer.view(max(buffer.start_token, end - retain), end))
        if index % 3:  # some views are never asked
            _ = views[-1].repeats
    assert views[-1].first_place > 0
    for view in views:
        found, expected = (index.find(context, 8, 4) for index in (view.repeats, RepeatIndex(view.text)))
        assert found.valid.any()
        for name in ("index", "valid", "runs"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    # most views were indexed by the buffer's own parts, not anew
    assert buffer._repeats.num_bytes > 0
