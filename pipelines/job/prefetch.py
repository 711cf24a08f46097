# SPDX-License-Identifier: Apache-2.0
"""Prefetch of documents: a thread reads and tokenises them ahead of the job."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread

from longmem.errors import DocumentError
from longmem.text.documents import UnreadableDocument
from longmem.text.segments import Passage, cut_passages, cut_segments
from longmem.text.tokenizer import AbstractTokenizer
from longmem.types import Document, DocumentKey, Segment

AHEAD = 2
"""Documents that are prefetched: hides reading and tokenising, and bounds their memory."""


@dataclass(frozen=True)
class Prepared:
    """One input document; `segments` is empty if it is unreadable or needs no work."""

    order: int
    document: Document | UnreadableDocument
    segments: list[Segment]
    passages: list[Passage] | None = None
    """Text of each segment's targets; None unless readings are kept."""


class DocumentFeed:
    """Queue of prepared documents in input order. Only documents that `needs_work` accepts are tokenised."""

    def __init__(
        self,
        documents: Iterable[Document | UnreadableDocument],
        tokenizer: AbstractTokenizer,
        segment_tokens: int,
        namespace: str,
        needs_work: Callable[[Document], bool],
        *,
        keep_readings: bool = False,
    ) -> None:
        """Start to read. With `keep_readings`, scores of the segments tell what their tokens read."""
        self._documents = documents
        self._tokenizer = tokenizer
        self._segment_tokens = segment_tokens
        self._namespace = namespace
        self._needs_work = needs_work
        self._keep_readings = keep_readings
        self._queue: Queue[Prepared | BaseException | None] = Queue(AHEAD)
        self._stop = Event()
        self._thread = Thread(target=self._produce, name="document-feed", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float | None = None) -> Prepared | None:
        """Return the next document, or None after the last.

        Raises TimeoutError if it is not prepared in time, and errors of reading that are not of one document.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"no document was prepared within {timeout_s:g} s") from None
        if item is None or isinstance(item, BaseException):
            # keep the end marker: the job calls `next` again
            self._queue.put(item)
        if isinstance(item, BaseException):
            raise item
        return item

    @property
    def has_ended(self) -> bool:
        """True once it is known that no document is left."""
        with self._queue.mutex:
            return list(self._queue.queue) == [None]

    def close(self) -> None:
        self._stop.set()
        self._tokenizer.stop()
        self._thread.join()

    def _produce(self) -> None:
        try:
            for order, document in enumerate(self._documents):
                if not self._put(self._prepare(order, document)):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again by `next`, in the job's thread
            self._put(error)
        else:
            self._put(None)

    def _prepare(self, order: int, document: Document | UnreadableDocument) -> Prepared:
        if isinstance(document, UnreadableDocument) or not self._needs_work(document):
            return Prepared(order, document, [])
        key = DocumentKey(self._namespace, document.id)
        try:
            if not self._keep_readings:
                sequence = self._tokenizer.sequence(document.text)
                return Prepared(order, document, cut_segments(key, sequence, self._segment_tokens))
            sequence, spans = self._tokenizer.sequence_with_spans(document.text)
        except DocumentError as error:
            return Prepared(order, UnreadableDocument(document.id, document.source, error), [])
        segments = cut_segments(key, sequence, self._segment_tokens, keep_readings=True)
        return Prepared(order, document, segments, cut_passages(document.text, spans, segments))

    def _put(self, item: Prepared | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False
