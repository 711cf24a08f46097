# SPDX-License-Identifier: Apache-2.0
"""Contract of AbstractMemoryStore on every store. Tests that need a disk run on the LanceDB store alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longmem.errors import (
    ConfigError,
    ConflictError,
    CorruptionError,
    FingerprintError,
    MissingBlockError,
    NumericError,
    QuotaError,
    StoreError,
)
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import IN_MEMORY, MemoryStore
from longmem.store.in_memory import InMemoryStore
from longmem.store.lance.catalogue import PAYLOAD_SEGMENTS, at
from longmem.store.lance.store import LanceMemoryStore
from longmem.store.lance.writer import STEPS
from longmem.stored_format import SCALE_BYTES
from longmem.types import DocumentKey, KVBlock, PutReceipt
from tests.blocks import IDENTITY, KEY, SEGMENT_TOKENS, assert_same, make_block

NASTY_NAMES = [
    "",
    "a/b",
    "../../etc",
    "it's; DROP TABLE catalogue --",
    "ünï\u202ecode",
    "line\nbreak",
    "x" * 5000,
]


@pytest.fixture(params=["memory", "lance"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AbstractMemoryStore]:
    uri = IN_MEMORY if request.param == "memory" else str(tmp_path / "memory.lance")
    with MemoryStore.open(uri) as opened:
        yield opened


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "memory.lance")


# --- put and read -----------------------------------------------------------------------------------------------


def test_put_then_read_gives_the_very_bytes(store: AbstractMemoryStore) -> None:
    blocks = [make_block(segment=index) for index in range(3)]
    receipts = [store.put(block) for block in blocks]
    assert [receipt.duplicate for receipt in receipts] == [False] * 3
    assert [receipt.num_bytes for receipt in receipts] == [block.num_bytes for block in blocks]
    for found, expected in zip(store.read(KEY, 0, 3), blocks, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("kv_dtype", ["float16", "float32", "bfloat16", "int8"])
def test_every_number_type_survives(store: AbstractMemoryStore, kv_dtype: str) -> None:
    block = make_block(identity=replace(IDENTITY, kv_dtype=kv_dtype))
    store.put(block)
    assert_same(store.read(KEY, 0, 1)[0], block)


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 15])
def test_a_partial_last_chunk_keeps_its_length(store: AbstractMemoryStore, num_tokens: int) -> None:
    store.put(make_block(segment=0))
    last = make_block(segment=1, num_tokens=num_tokens)
    store.put(last)
    assert_same(store.read(KEY, 1, 2)[0], last)
    assert store.segments(KEY)[1].num_tokens == num_tokens


def test_segments_may_arrive_in_any_order(store: AbstractMemoryStore) -> None:
    for index in (2, 0, 1):
        store.put(make_block(segment=index))
    assert [info.segment for info in store.segments(KEY)] == [0, 1, 2]
    assert [block.segment for block in store.read(KEY, 0, 3)] == [0, 1, 2]


def test_what_was_read_cannot_be_changed(store: AbstractMemoryStore) -> None:
    block = make_block()
    store.put(block)
    found = store.read(KEY, 0, 1)[0]
    for array in (found.tokens, found.keys, found.values):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    block.keys[:] = 7  # mutating the caller's array must not change the stored block
    assert not np.array_equal(store.read(KEY, 0, 1)[0].keys, block.keys)


def test_reading_what_is_not_there_says_what_is_missing(store: AbstractMemoryStore) -> None:
    store.put(make_block(segment=1))
    with pytest.raises(MissingBlockError, match=r"segments \[0, 2\] of \[0, 3\)"):
        store.read(KEY, 0, 3)
    with pytest.raises(MissingBlockError, match="nobody"):
        store.read(DocumentKey("default", "nobody"), 0, 1)
    assert store.read(KEY, 1, 1) == []


def test_the_catalogue_describes_every_block(store: AbstractMemoryStore) -> None:
    block = make_block(segment=1, num_tokens=7)
    store.put(block)
    (info,) = store.segments(KEY)
    assert (info.key, info.segment, info.start_token, info.num_tokens) == (KEY, 1, SEGMENT_TOKENS, 7)
    assert info.checksum == block.checksum()
    assert info.num_bytes == block.num_bytes == store.num_bytes()
    assert store.segments(DocumentKey("default", "nobody")) == []


# --- idempotence, conflicts, refusals ---------------------------------------------------------------------------


def test_a_replayed_put_changes_nothing(store: AbstractMemoryStore) -> None:
    block = make_block()
    store.put(block)
    last_bits = replace(block, keys=np.nextafter(block.keys, np.float16(9)))
    receipt = store.put(last_bits)
    assert receipt.duplicate
    assert_same(store.read(KEY, 0, 1)[0], block)
    assert len(store.segments(KEY)) == 1
    assert store.num_bytes() == block.num_bytes


def test_other_tokens_at_the_same_place_are_a_conflict(store: AbstractMemoryStore) -> None:
    block = make_block()
    store.put(block)
    for other in (replace(block, tokens=block.tokens + 1), make_block(num_tokens=5)):
        with pytest.raises(ConflictError, match="already holds other tokens"):
            store.put(other)
    assert_same(store.read(KEY, 0, 1)[0], block)


def test_another_models_block_is_refused_with_both_sides(store: AbstractMemoryStore) -> None:
    assert store.fingerprint() is None
    store.put(make_block())
    assert store.fingerprint() == IDENTITY
    other = replace(IDENTITY, backbone="another", chunk_tokens=8)
    with pytest.raises(FingerprintError, match=r"backbone: 'b' != 'another'; chunk_tokens: 4 != 8"):
        store.put(make_block(segment=1, identity=other))
    assert len(store.segments(KEY)) == 1


@pytest.mark.parametrize("kv_dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(store: AbstractMemoryStore, kv_dtype: str, bad: float) -> None:
    block = make_block(identity=replace(IDENTITY, kv_dtype=kv_dtype))
    values = block.values.copy()
    bits = (np.array([bad], np.float32).view(np.uint32) >> 16).astype(np.uint16)[0]
    values[3, 1, 2] = bits if kv_dtype == "bfloat16" else bad
    with pytest.raises(NumericError, match="values hold 1 NaN or infinite"):
        store.put(replace(block, values=values))
    assert store.documents() == []


def test_an_int8_row_whose_scale_is_not_finite_is_refused(store: AbstractMemoryStore) -> None:
    block = make_block(identity=replace(IDENTITY, kv_dtype="int8"))
    for bad in (np.nan, np.inf, 1e30):
        values = block.values.copy()
        values[3, 1, -SCALE_BYTES:] = np.array([bad], np.float32).view(np.int8)
        with pytest.raises(NumericError, match="values hold 1 NaN or infinite"):
            store.put(replace(block, values=values))
    assert store.documents() == []


def test_a_block_that_is_not_what_it_says_is_refused(store: AbstractMemoryStore) -> None:
    block = make_block()
    for wrong in (
        replace(block, keys=block.keys[:, :1], values=block.values[:, :1]),
        replace(block, values=block.values.astype(np.float32)),
        replace(block, start_token=4),
        replace(block, segment=-1, start_token=-SEGMENT_TOKENS),
        make_block(num_tokens=SEGMENT_TOKENS + 4),
    ):
        with pytest.raises(StoreError, match="must"):
            store.put(wrong)
    assert store.documents() == []


def test_a_closed_store_says_so(store: AbstractMemoryStore) -> None:
    store.put(make_block())
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.put(make_block()),
        lambda: store.read(KEY, 0, 1),
        lambda: store.segments(KEY),
        store.documents,
        store.fingerprint,
        store.num_bytes,
        store.verify,
        lambda: store.delete(KEY),
        lambda: store.trim(KEY, 1),
        lambda: store.fork(KEY, DocumentKey("a", "b")),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()


# --- documents and namespaces -----------------------------------------------------------------------------------


def test_names_of_any_kind_stay_apart(store: AbstractMemoryStore) -> None:
    keys = [DocumentKey(namespace, name) for namespace in ("n", "n/a", "") for name in NASTY_NAMES]
    for seed, key in enumerate(keys):
        store.put(make_block(key, seed=seed))
    assert store.documents() == sorted(keys)
    assert store.documents("n/a") == sorted(key for key in keys if key.namespace == "n/a")
    for seed, key in enumerate(keys):
        assert_same(store.read(key, 0, 1)[0], make_block(key, seed=seed))
    store.delete(keys[0])
    assert store.documents() == sorted(keys[1:])


def test_a_name_that_is_no_unicode_is_refused(store: AbstractMemoryStore) -> None:
    with pytest.raises(StoreError, match="Unicode"):
        store.put(make_block(DocumentKey("n", "\ud800")))


def test_the_border_between_namespace_and_name_is_not_lost(store: AbstractMemoryStore) -> None:
    for seed, key in enumerate([DocumentKey("a", "b/c"), DocumentKey("a/b", "c"), DocumentKey("ab", "c")]):
        store.put(make_block(key, seed=seed))
        assert_same(store.read(key, 0, 1)[0], make_block(key, seed=seed))


def test_a_fork_shares_the_past_and_nothing_else(store: AbstractMemoryStore) -> None:
    blocks = [make_block(segment=index) for index in range(2)]
    for block in blocks:
        store.put(block)
    size = store.num_bytes()
    copy = DocumentKey("experiment", "moby-dick-2")
    assert store.fork(KEY, copy) == 2
    assert store.num_bytes() == size
    store.put(make_block(copy, segment=2))
    assert len(store.segments(KEY)) == 2
    assert store.delete(KEY) == 2
    for found, expected in zip(store.read(copy, 0, 2), blocks, strict=True):
        assert_same(found, replace(expected, key=copy))
    assert store.delete(copy) == 3
    assert store.documents() == []
    assert store.num_bytes() == 0


def test_a_fork_never_overwrites(store: AbstractMemoryStore) -> None:
    other = DocumentKey("default", "other")
    store.put(make_block())
    store.put(make_block(other, seed=1))
    with pytest.raises(ConflictError, match="exists"):
        store.fork(KEY, other)
    with pytest.raises(MissingBlockError, match="no such document"):
        store.fork(DocumentKey("default", "nobody"), DocumentKey("default", "new"))
    assert_same(store.read(other, 0, 1)[0], make_block(other, seed=1))


def test_a_deleted_document_can_be_written_anew(store: AbstractMemoryStore) -> None:
    store.put(make_block(seed=1))
    assert store.delete(KEY) == 1
    assert store.delete(KEY) == 0
    assert store.documents() == []
    with pytest.raises(MissingBlockError):
        store.read(KEY, 0, 1)
    store.put(make_block(seed=2))
    assert_same(store.read(KEY, 0, 1)[0], make_block(seed=2))


def test_a_handle_is_a_name_only(store: AbstractMemoryStore) -> None:
    memory = store.document("moby-dick")
    assert memory.key == KEY
    assert memory.num_tokens == 0
    store.put(make_block())
    store.put(make_block(segment=1, num_tokens=3))
    assert memory.num_tokens == SEGMENT_TOKENS + 3
    assert memory.as_read_only().read_only
    assert memory.fork("again").num_tokens == memory.num_tokens
    assert memory.delete() == 2


def test_trim_forgets_the_past_below_a_segment_and_nothing_else(store: AbstractMemoryStore) -> None:
    for index in range(5):
        store.put(make_block(segment=index))
    other, copy = DocumentKey("default", "other"), DocumentKey("default", "copy")
    store.put(make_block(other))
    store.fork(KEY, copy)
    size = store.num_bytes()
    assert store.trim(KEY, 0) == 0
    assert store.trim(KEY, 3) == 3
    assert store.trim(KEY, 3) == 0
    assert store.trim(KEY, 2) == 0
    assert [info.segment for info in store.segments(KEY)] == [3, 4]
    with pytest.raises(MissingBlockError, match=r"segments \[2\] of \[2, 4\)"):
        store.read(KEY, 2, 4)
    assert_same(store.read(KEY, 3, 5)[1], make_block(segment=4))
    assert_same(store.read(other, 0, 1)[0], make_block(other))
    assert_same(store.read(copy, 0, 5)[2], make_block(copy, segment=2))
    assert store.num_bytes() == size
    assert store.delete(copy) == 5
    assert store.num_bytes() == 3 * make_block().num_bytes
    assert store.verify() == 3
    # a deleted document may be written again
    assert not store.put(make_block(segment=0, seed=7)).duplicate
    assert_same(store.read(KEY, 0, 1)[0], make_block(segment=0, seed=7))


def test_a_document_trimmed_to_nothing_is_gone(store: AbstractMemoryStore) -> None:
    assert store.trim(KEY, 9) == 0
    store.put(make_block())
    assert store.trim(KEY, 9) == 1
    assert store.documents() == []
    assert store.trim(KEY, 9) == 0
    assert store.delete(KEY) == 0


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "lance"])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], AbstractMemoryStore]:
    """Return a factory that opens the store under test with a limit in blocks."""
    uri = IN_MEMORY if request.param == "memory" else str(tmp_path / "memory.lance")
    return lambda blocks: MemoryStore.open(uri, max_bytes=blocks * make_block().num_bytes)


def test_a_full_store_refuses_and_says_what_it_holds(limited: Callable[[int], AbstractMemoryStore]) -> None:
    size = make_block().num_bytes
    with limited(3) as store:
        for index in range(3):
            store.put(make_block(segment=index))
        with pytest.raises(QuotaError, match=rf"holds {3 * size:,} bytes of at most {3 * size:,}.*rm"):
            store.put(make_block(segment=3))
        assert store.verify() == 3
        # neither a replay nor a fork adds blocks
        assert store.put(make_block(segment=0)).duplicate
        assert store.fork(KEY, DocumentKey("default", "copy")) == 3
        with pytest.raises(QuotaError):
            store.put(make_block(segment=3))
        store.delete(DocumentKey("default", "copy"))
        assert store.trim(KEY, 1) == 1
        store.put(make_block(segment=3))
        with pytest.raises(QuotaError):
            store.put(make_block(segment=4))
        store.delete(KEY)
        store.put(make_block(segment=4))


def test_a_limit_counts_what_is_there_already_and_what_others_do(uri: str) -> None:
    size = make_block().num_bytes
    with MemoryStore.open(uri) as free, MemoryStore.open(uri, max_bytes=20 * size) as limited:
        for index in range(19):
            free.put(make_block(segment=index))
        limited.put(make_block(segment=19))
        with pytest.raises(QuotaError):
            limited.put(make_block(segment=20))
        # another process frees space, which this process cannot have counted
        free.trim(KEY, 10)
        for index in range(20, 25):
            limited.put(make_block(segment=index))
        for index in range(25, 30):
            free.put(make_block(segment=index))
        with pytest.raises(QuotaError):
            limited.put(make_block(segment=30))
    with MemoryStore.open(uri, max_bytes=20 * size) as reopened, pytest.raises(QuotaError):
        reopened.put(make_block(segment=30))


def test_a_limit_of_nothing_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="at least 1 byte"):
        MemoryStore.open(uri, max_bytes=0)


# --- several at once --------------------------------------------------------------------------------------------


def test_several_blocks_at_once_are_several_puts(store: AbstractMemoryStore) -> None:
    other = DocumentKey("n", "other")
    store.put(make_block(segment=1))
    blocks = [make_block(segment=2), make_block(segment=1), make_block(other), make_block(segment=0), make_block(other)]
    receipts = store.put_all(blocks)
    assert [(each.key, each.segment, each.num_bytes) for each in receipts] == [
        (each.key, each.segment, each.num_bytes) for each in blocks
    ]
    assert [each.duplicate for each in receipts] == [False, True, False, False, True]
    for found in [*store.read(KEY, 0, 3), *store.read(other, 0, 1)]:
        assert_same(found, make_block(found.key, found.segment))
    assert store.put_all([]) == []


def test_one_of_several_that_is_refused_harms_no_other(store: AbstractMemoryStore) -> None:
    store.put(make_block(segment=1))
    blocks = [make_block(segment=0), make_block(segment=1, seed=9), make_block(segment=2)]
    with pytest.raises(ConflictError, match="segment 1"):
        store.put_all(blocks)
    for info in store.segments(KEY):
        assert_same(store.read(KEY, info.segment, info.segment + 1)[0], make_block(segment=info.segment))
    with pytest.raises(ConflictError, match="segment 3"):
        store.put_all([make_block(segment=3), make_block(segment=3, seed=9)])
    store.trim(KEY, 9)
    store.put(blocks[0])
    store.put(make_block(segment=1))
    store.put(blocks[2])
    assert [info.segment for info in store.segments(KEY)] == [0, 1, 2]
    bad = make_block(segment=3)
    bad.keys[0] = np.nan
    with pytest.raises(NumericError, match="segment 3"):
        store.put_all([bad])
    assert store.put_all([make_block(segment=3)])[0].duplicate is False


def test_reading_ahead_stops_at_the_first_gap(store: AbstractMemoryStore) -> None:
    store.put_all([make_block(segment=index) for index in (0, 1, 2, 3, 5)])

    def read(first: int, last: int, ahead: int) -> list[int]:
        return [block.segment for block in store.read(KEY, first, last, ahead=ahead)]

    assert read(0, 1, ahead=0) == [0]
    assert read(0, 1, ahead=2) == [0, 1, 2]
    assert read(1, 3, ahead=9) == [1, 2, 3]
    assert read(5, 6, ahead=9) == [5]
    assert read(2, 2, ahead=9) == []
    with pytest.raises(MissingBlockError, match=r"\[4\]"):
        read(3, 5, ahead=9)


# --- concurrency ------------------------------------------------------------------------------------------------


def test_appending_and_reading_at_once(store: AbstractMemoryStore) -> None:
    """Check that readers see whole blocks, in order, while a writer appends: never a torn or foreign one."""
    total, errors, done = 40, [], threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                count = len(store.segments(KEY))
                for block in store.read(KEY, 0, count):
                    assert_same(block, make_block(segment=block.segment))
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for index in range(total):
        store.put(make_block(segment=index))
    done.set()
    for thread in readers:
        thread.join()
    assert errors == []
    assert len(store.segments(KEY)) == total


def test_the_same_block_from_many_threads_is_stored_once(store: AbstractMemoryStore) -> None:
    receipts = []
    threads = [threading.Thread(target=lambda: receipts.append(store.put(make_block()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert len(store.segments(KEY)) == 1


def test_overlapping_groups_from_many_threads_are_stored_once(store: AbstractMemoryStore) -> None:
    receipts: list[PutReceipt] = []
    groups = [[make_block(segment=(first + index) % 6) for index in range(4)] for first in range(6)]
    threads = [threading.Thread(target=lambda group=group: receipts.extend(store.put_all(group))) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(each.segment for each in receipts if not each.duplicate) == dict.fromkeys(range(6), 1)
    assert len(receipts) == 24
    for found in store.read(KEY, 0, 6):
        assert_same(found, make_block(segment=found.segment))


# --- against the model ------------------------------------------------------------------------------------------

KEYS = [DocumentKey("n", "a"), DocumentKey("n", "b"), DocumentKey("m", "a")]
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 3), st.integers(0, 1)),
    st.tuples(
        st.just("put_all"),
        st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 3), st.integers(0, 1)), max_size=4),
    ),
    st.tuples(st.just("delete"), st.sampled_from(KEYS)),
    st.tuples(st.just("trim"), st.sampled_from(KEYS), st.integers(0, 4)),
    st.tuples(st.just("fork"), st.sampled_from(KEYS), st.sampled_from(KEYS)),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATIONS, max_size=12))
def test_lance_does_what_the_reference_does(tmp_path_factory: pytest.TempPathFactory, operations: list[tuple]) -> None:
    """Check that any sequence of calls gives equal answers and errors, and equal content after reopening."""

    def apply(store: AbstractMemoryStore, operation: tuple) -> object:
        try:
            if operation[0] == "put":
                _, key, segment, seed = operation
                return store.put(make_block(key, segment, seed=seed))
            if operation[0] == "put_all":
                return put_all(store, [make_block(key, segment, seed=seed) for key, segment, seed in operation[1]])
            return getattr(store, operation[0])(*operation[1:])
        except StoreError as error:
            return type(error)

    def put_all(store: AbstractMemoryStore, blocks: list[KVBlock]) -> object:
        try:
            return store.put_all(blocks)
        except StoreError as error:
            # the contract leaves open which ones are stored; afterwards all permitted ones are
            for block in blocks:
                with suppress(StoreError):
                    store.put(block)
            return type(error)

    folder = str(tmp_path_factory.mktemp("store"))
    with InMemoryStore() as reference:
        with MemoryStore.open(folder) as durable:
            for operation in operations:
                assert apply(durable, operation) == apply(reference, operation)
            assert durable.num_bytes() == reference.num_bytes()
        with MemoryStore.open(folder) as reopened:
            assert reopened.documents() == reference.documents()
            for key in reference.documents():
                assert reopened.segments(key) == reference.segments(key)
                for info in reference.segments(key):
                    found = reopened.read(key, info.segment, info.segment + 1)[0]
                    assert_same(found, reference.read(key, info.segment, info.segment + 1)[0])


# --- LanceDB store only -----------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, {folder!r})
from longmem.store.config import MemoryStore
from tests.blocks import make_block
with MemoryStore.open(sys.argv[1]) as store:
    for index in range(10_000):
        store.put(make_block(segment=index))
        print(index, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 4, 9])
def test_acknowledged_puts_survive_kill_9(uri: str, acknowledged: int) -> None:
    code = WRITER.format(folder=str(Path(__file__).parents[2]))
    with subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(acknowledged):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        sent = acknowledged + len(writer.stdout.read().split())
    with MemoryStore.open(uri) as store:
        found = len(store.segments(KEY))
        # the block in flight at the signal is either absent or whole
        assert sent <= found <= sent + 1
        for block in store.read(KEY, 0, found):
            assert_same(block, make_block(segment=block.segment))
        assert store.verify() == found
        assert not store.put(make_block(segment=found)).duplicate


def test_a_put_killed_between_payload_and_catalogue_leaves_nothing(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore.open(uri) as store:
        database = store._database  # type: ignore[attr-defined]

        def dies(name: str, rows: object, column: str) -> int:
            raise KeyboardInterrupt

        store.put(make_block(segment=0))
        with monkeypatch.context() as patched:
            patched.setattr(database, "insert_missing", dies)
            with pytest.raises(KeyboardInterrupt):
                store.put(make_block(segment=1))
    with MemoryStore.open(uri) as store:
        assert [info.segment for info in store.segments(KEY)] == [0]
        assert not store.put(make_block(segment=1)).duplicate
        assert_same(store.read(KEY, 1, 2)[0], make_block(segment=1))
        store.delete(KEY)
    assert not list(Path(uri).glob("p-*"))


GROUP = [(KEY, 62), (KEY, 63), (KEY, 64), (DocumentKey("n", "other"), 0)]
"""Keys in three payload tables."""


@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("put:")])
def test_several_puts_that_die_at_any_step_are_whole_or_not_there(uri: str, step: str) -> None:
    def dies(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    blocks = [make_block(key, segment) for key, segment in GROUP]
    with LanceMemoryStore(uri) as store:
        store.put(make_block(segment=0))
    with LanceMemoryStore(uri, dies) as store, pytest.raises(KeyboardInterrupt):
        store.put_all(blocks)
    committed = STEPS.index(step) >= STEPS.index("put:catalogue")
    with LanceMemoryStore(uri) as store:
        assert store.verify() == (5 if committed else 1)
        assert [each.duplicate for each in store.put_all(blocks)] == [committed] * 4
        for key, segment in GROUP:
            assert_same(store.read(key, segment, segment + 1)[0], make_block(key, segment))
        assert store.verify() == 5


def test_another_process_that_is_faster_with_some_of_a_group_keeps_its_own(uri: str) -> None:
    with LanceMemoryStore(uri) as other:
        taken = make_block(segment=1)
        theirs = replace(taken, keys=taken.keys + 1)

        def races(step: str) -> None:
            if step == "put:payload":
                assert not other.put(theirs).duplicate

        with LanceMemoryStore(uri, races) as store:
            receipts = store.put_all([make_block(segment=index) for index in range(3)])
            assert [each.duplicate for each in receipts] == [False, True, False]
            found = store.read(KEY, 0, 3)
            assert_same(found[1], theirs)
            assert_same(found[0], make_block(segment=0))


def test_trimming_frees_the_disk_of_whole_tables(uri: str) -> None:
    copy = DocumentKey("default", "copy")
    with MemoryStore.open(uri) as store:
        last = 2 * PAYLOAD_SEGMENTS + 1
        for index in range(PAYLOAD_SEGMENTS - 2, last):
            store.put(make_block(segment=index))
        assert len(payload_tables(uri)) == 3
        store.trim(KEY, PAYLOAD_SEGMENTS - 1)
        assert len(payload_tables(uri)) == 3
        store.trim(KEY, PAYLOAD_SEGMENTS)
        assert len(payload_tables(uri)) == 2
        store.fork(KEY, copy)
        store.trim(KEY, last)
        assert len(payload_tables(uri)) == 2
        assert store.verify(copy) == last - PAYLOAD_SEGMENTS
        store.trim(copy, 2 * PAYLOAD_SEGMENTS)
        assert len(payload_tables(uri)) == 1
        store.delete(copy)
        assert payload_tables(uri) == []
        assert [path for path in Path(uri).iterdir() if path.name.startswith(".dropped")] == []


@pytest.mark.parametrize("removal", ["delete", "trim"])
def test_a_fork_whose_source_goes_meanwhile_names_nothing_that_is_gone(uri: str, removal: str) -> None:
    """Check a fork that races with the removal of its source: a remover checks other references, but not future
    forks."""
    copy = DocumentKey("default", "copy")
    with LanceMemoryStore(uri) as store:
        for index in range(2):
            store.put(make_block(segment=index))

    class Racing(LanceMemoryStore):
        def _catalogue(self, where: str | None = None, columns: list[str] | None = None) -> pa.Table:
            rows = super()._catalogue(where, columns)
            if where == at(copy):
                # after the fork has read its source, before it writes
                with LanceMemoryStore(uri) as other:
                    _ = other.delete(KEY) if removal == "delete" else other.trim(KEY, 1)
            return rows

    with Racing(uri) as racing, pytest.raises(MissingBlockError, match="meanwhile"):
        racing.fork(KEY, copy)
    with LanceMemoryStore(uri) as store:
        assert store.segments(copy) == []
        assert store.verify() == (0 if removal == "delete" else 1)


def test_what_another_process_writes_anew_is_read_anew(uri: str) -> None:
    with MemoryStore.open(uri) as reader, MemoryStore.open(uri) as writer:
        for seed in range(3):
            for index in range(3 - seed):
                writer.put(make_block(segment=index, seed=seed))
            assert_same(reader.read(KEY, 0, 3 - seed)[0], make_block(seed=seed))
            writer.delete(KEY)
            with pytest.raises(MissingBlockError):
                reader.read(KEY, 0, 1)


def _append(uri: str, key: DocumentKey, start: threading.Barrier) -> None:
    with MemoryStore.open(uri) as store:
        start.wait()
        for index in range(10):
            store.put(make_block(key, segment=index))


def test_two_processes_write_to_one_store(uri: str) -> None:
    keys = [DocumentKey("default", name) for name in ("a", "b")]
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(2)
    writers = [spawn.Process(target=_append, args=(uri, key, start)) for key in keys]
    with MemoryStore.open(uri) as watching:
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        # opened before they wrote, but reads everything that they wrote
        assert watching.documents() == keys
        assert watching.verify() == 20


def flip_bit(path: Path, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3 if position is None else position] ^= 1
    path.write_bytes(data)


def payload_tables(uri: str) -> list[Path]:
    return sorted(Path(uri).glob("p-*.lance"))


def payload_files(uri: str) -> list[Path]:
    return sorted(Path(uri).glob("p-*.lance/data/*.lance"))


def test_a_flipped_bit_in_stored_keys_is_an_error_not_a_number(uri: str) -> None:
    with MemoryStore.open(uri) as store:
        for index in range(2):
            store.put(make_block(segment=index))
    # every data byte: the values are located in the file, so that the flip cannot land in padding
    file = payload_files(uri)[0]
    needles = [make_block(segment=index).keys.tobytes()[:32] for index in range(2)]
    position = next(at for needle in needles if (at := file.read_bytes().find(needle)) >= 0)
    flip_bit(file, position + 5)
    with MemoryStore.open(uri) as store:
        with pytest.raises(CorruptionError, match="checksum"):
            store.read(KEY, 0, 2)
        with pytest.raises(CorruptionError):
            store.verify()


@pytest.mark.parametrize("damage", ["truncated", "missing", "zeros"])
def test_damaged_payload_files_are_an_error(uri: str, damage: str) -> None:
    with MemoryStore.open(uri) as store:
        store.put(make_block())
    file = payload_files(uri)[0]
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.write_bytes(bytes(file.stat().st_size))
    with MemoryStore.open(uri) as store, pytest.raises(CorruptionError):
        store.read(KEY, 0, 1)


@pytest.mark.parametrize("table", ["catalogue", "identity"])
def test_a_zeroed_newest_manifest_is_an_error_not_an_empty_store(uri: str, table: str) -> None:
    with MemoryStore.open(uri) as store:
        store.put(make_block())
    newest = sorted((Path(uri) / f"{table}.lance" / "_versions").glob("*.manifest"))[0]
    newest.write_bytes(bytes(newest.stat().st_size))
    with pytest.raises(CorruptionError), MemoryStore.open(uri) as store:
        store.read(KEY, 0, 1)


def test_damage_in_the_reference_store_is_found_too() -> None:
    with InMemoryStore() as store:
        store.put(make_block())
        kept = store._documents[KEY][0][1].keys
        kept.flags.writeable = True
        kept[0, 0, 0] += 1
        with pytest.raises(CorruptionError):
            store.read(KEY, 0, 1)


def test_a_place_that_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError):
        MemoryStore.open(tmp_path / "file")


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path) -> None:
    """Fill a small file system of its own; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    identity = replace(IDENTITY, kv_heads=16, head_dim=64)
    try:
        with MemoryStore.open(disk / "memory.lance") as store:
            stored = 0
            with pytest.raises(StoreError, match="disk is full"):  # noqa: PT012 - the disk decides how many
                for index in range(200):
                    store.put(make_block(segment=index, identity=identity))
                    stored += 1
            assert stored > 0
            assert len(store.segments(KEY)) == stored
            assert store.verify() == stored
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_absent_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lance sorts rows on disk, in TMPDIR."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    with pytest.raises(StoreError, match=f"temporary folder in {tmp_path}/absent; set TMPDIR to a folder that exists"):
        MemoryStore.open(tmp_path / "memory.lance").put(make_block())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="permission"):
            MemoryStore.open(tmp_path / "memory.lance")
    finally:
        tmp_path.chmod(0o700)
