# SPDX-License-Identifier: Apache-2.0
"""Prefetching: input order, bad documents in their place, and an end that never hangs."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import DocumentError
from longmem.model.longmem import LongMem
from longmem.text.documents import UnreadableDocument
from longmem.types import Document, DocumentKey
from pipelines.job.prefetch import AHEAD, DocumentFeed, Prepared


@pytest.fixture(scope="module")
def tokenizer(small_model: Callable[..., LongMem]) -> Tokenizer:
    return small_model("llama").tokenizer


def document(name: str, text: str = "some words") -> Document:
    return Document(name, text, f"{name}.txt")


def bad(name: str) -> UnreadableDocument:
    return UnreadableDocument(name, f"{name}.txt", DocumentError(f"{name} is empty"))


def always(_: Document) -> bool:
    return True


def drain(feed: DocumentFeed) -> list[Prepared]:
    found = []
    while (prepared := feed.next()) is not None:
        found.append(prepared)
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s"
        time.sleep(0.005)


def test_documents_come_in_input_order_cut_into_segments(tokenizer: Tokenizer) -> None:
    documents = [document(str(number), "x" * (3 * number + 1)) for number in range(7)]
    feed = DocumentFeed(iter(documents), tokenizer, 8, "library", always)
    prepared = drain(feed)
    assert [each.order for each in prepared] == list(range(7))
    assert [each.document for each in prepared] == documents
    for number, each in enumerate(prepared):
        assert sum(segment.num_tokens for segment in each.segments) == 1 + 3 * number + 1
        assert {segment.key for segment in each.segments} == {DocumentKey("library", str(number))}
    assert feed.next() is None, "the end may be asked for again"
    feed.close()


def test_bad_documents_keep_their_place(tokenizer: Tokenizer) -> None:
    feed = DocumentFeed(iter([document("a"), bad("b"), document("c")]), tokenizer, 8, "default", always)
    first, second, third = drain(feed)
    feed.close()
    assert [each.order for each in (first, second, third)] == [0, 1, 2]
    assert isinstance(second.document, UnreadableDocument)
    assert second.segments == []
    assert first.segments
    assert third.segments


def test_a_text_that_gives_no_token_is_a_bad_document(tokenizer: Tokenizer) -> None:
    feed = DocumentFeed(iter([document("empty", ""), document("c")]), tokenizer, 8, "default", always)
    first, second = drain(feed)
    feed.close()
    assert isinstance(first.document, UnreadableDocument)
    assert (first.document.id, first.document.source) == ("empty", "empty.txt")
    assert "gives no tokens" in str(first.document.error)
    assert second.segments


def test_what_needs_no_work_is_not_tokenised(tokenizer: Tokenizer) -> None:
    feed = DocumentFeed(
        iter([document("done"), document("new")]), tokenizer, 8, "default", lambda each: each.id == "new"
    )
    done, new = drain(feed)
    feed.close()
    assert (done.document, done.segments) == (document("done"), [])
    assert new.segments


def test_only_a_few_documents_are_read_ahead(tokenizer: Tokenizer) -> None:
    read = []

    def documents() -> Iterator[Document]:
        for number in range(100):
            read.append(number)
            yield document(str(number))

    feed = DocumentFeed(documents(), tokenizer, 8, "default", always)
    try:
        # AHEAD wait in the queue, and one more waits for a free slot
        wait_for(lambda: len(read) == AHEAD + 1)
        time.sleep(0.3)
        assert len(read) == AHEAD + 1
        assert feed.next() is not None
        wait_for(lambda: len(read) == AHEAD + 2)
    finally:
        feed.close()


class SomethingElse(Exception):
    pass


@pytest.mark.parametrize("kind", [SomethingElse, KeyboardInterrupt])
def test_trouble_beyond_one_document_reaches_the_reader(tokenizer: Tokenizer, kind: type[BaseException]) -> None:
    def documents() -> Iterator[Document]:
        yield document("a")
        raise kind("the disk is gone")

    feed = DocumentFeed(documents(), tokenizer, 8, "default", always)
    first = feed.next()
    assert first is not None
    for _ in range(3):
        with pytest.raises(kind, match="the disk is gone"):
            feed.next()
    feed.close()


@pytest.mark.parametrize("num_taken", [0, 1])
def test_closing_ends_a_blocked_producer(tokenizer: Tokenizer, num_taken: int) -> None:
    read = []

    def documents() -> Iterator[Document]:
        for number in range(1000):
            read.append(number)
            yield document(str(number))

    before = set(threading.enumerate())
    feed = DocumentFeed(documents(), tokenizer, 8, "default", always)
    [thread] = set(threading.enumerate()) - before
    for _ in range(num_taken):
        feed.next()
    wait_for(lambda: len(read) == AHEAD + 1 + num_taken)
    time.sleep(0.15)
    start = time.monotonic()
    feed.close()
    assert time.monotonic() - start < 5
    assert not thread.is_alive()
    feed.close()


def test_the_end_is_known_once_all_is_taken_and_read(tokenizer: Tokenizer) -> None:
    """Check that the end is not reported while a document may still come."""
    go_on = threading.Event()

    def documents() -> Iterator[Document]:
        yield document("a")
        yield document("b")
        go_on.wait()

    feed = DocumentFeed(documents(), tokenizer, 8, "default", always)
    assert not feed.has_ended
    feed.next()
    feed.next()
    assert not feed.has_ended, "nobody knows yet"
    go_on.set()
    wait_for(lambda: feed.has_ended)
    assert feed.next() is None
    assert feed.has_ended
    feed.close()


def test_closing_after_the_end_is_harmless(tokenizer: Tokenizer) -> None:
    feed = DocumentFeed(iter([]), tokenizer, 8, "default", always)
    assert feed.next() is None
    feed.close()
    assert not any(thread.name == "document-feed" for thread in threading.enumerate())


def test_passages_come_only_where_readings_are_kept(tokenizer: Tokenizer) -> None:
    documents = [document("a", "naïve words"), document("b", ""), document("done", "c")]
    needed = lambda each: each.id != "done"  # noqa: E731
    kept = DocumentFeed(iter(documents), tokenizer, 4, "library", needed, keep_readings=True)
    first, empty, done = drain(kept)
    assert first.passages is not None
    assert "".join(passage.text for passage in first.passages) == "naïve words"
    assert len(first.passages) == len(first.segments)
    assert all(segment.keep_readings for segment in first.segments)
    assert isinstance(empty.document, UnreadableDocument)
    assert (done.segments, done.passages) == ([], None)
    kept.close()
    plain = DocumentFeed(iter(documents[:1]), tokenizer, 4, "library", always)
    [first] = drain(plain)
    assert first.passages is None
    assert not any(segment.keep_readings for segment in first.segments)
    plain.close()
