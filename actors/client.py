# SPDX-License-Identifier: Apache-2.0
"""An asyncio client of a service: write, score, generate.

    async with connect("auto", service="longmem") as client:
        await client.write("moby-dick", text)
        scores = await client.score(next_chapter, "moby-dick", follows=True)
        print(scores.perplexity, scores.backbone_perplexity)
        print(await client.generate("Call me", "moby-dick", max_new_tokens=50))

The client drives its requests itself, as a job does, so there is no server between it and the pools that could fail.
It needs access to the Ray cluster, but not to the files of the model or the store.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import numpy as np

from actors.config import AUTO, IN_FLIGHT_BYTES
from actors.errors import translated
from actors.result import TaskResult
from actors.service.client_driver import ClientDriver, DocumentRequest, DocumentResult
from actors.service.executor import AttachedExecutor, attach
from actors.service.registry import DEFAULT_NAME
from actors.service.requests import GenerateRequest, ScoreRequest
from actors.workers.encoder import TokenizedText
from longmem.errors import ClusterError, ConfigError, RequestTimeoutError
from longmem.model.source import ModelDescription
from longmem.runtime.scheduler import Limits, stored_segments
from longmem.scoring.generate import Sampling
from longmem.scoring.text import TextScores, joined_baseline
from longmem.text.segments import cut_segments
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, Segment, SegmentInfo

Result = TypeVar("Result")


@dataclass(frozen=True)
class WriteReceipt:
    """Stored tokens, segments and bytes of a document after a write."""

    key: DocumentKey
    num_tokens: int
    num_segments: int
    num_new_segments: int
    """Segments that were not stored before: 0 when the same text is written again."""
    num_bytes: int


@asynccontextmanager
async def connect(
    address: str = AUTO,
    service: str = DEFAULT_NAME,
    *,
    timeout_s: float = 600.0,
    max_in_flight: int = 16,
    max_in_flight_bytes: int = IN_FLIGHT_BYTES,
    model: ModelDescription | None = None,
) -> AsyncIterator["MemoryClient"]:
    """Attach to a running service.

        async with connect(service="longmem", timeout_s=60) as client:
            await client.write("moby-dick", text)
            scores = await client.score(text, "moby-dick")

    `address` is that of a running Ray cluster; `auto` is the one on this machine. Each request times out after
    `timeout_s`. At most `max_in_flight` segments (and `max_in_flight_bytes`) of all requests of this client are in the
    service at once; further requests are queued. With `model`, the service must hold exactly that model. Leaving the
    block cancels running requests. The process stays joined to Ray until it exits, because it may have other clients.

    Raises ClusterError when there is no cluster or no such service, FingerprintError when it holds another model,
    RequestTimeoutError, ConfigError.
    """
    for name, value in (("timeout_s", timeout_s), ("max_in_flight", max_in_flight)):
        if not value > 0:
            raise ConfigError(f"{name} must be greater than 0, got {value}")
    driver = ClientDriver(lambda: attach(address, service, offered=model), Limits(max_in_flight, max_in_flight_bytes))
    try:
        executor = await _within(timeout_s, f"attaching to service {service!r}", asyncio.wrap_future(driver.started))
        yield MemoryClient(executor, driver, timeout_s)
    finally:
        # joins the thread, which may block in a call to Ray, so not in the event loop
        await asyncio.to_thread(driver.close)


class MemoryClient:
    """Requests to one service. Any number may run at once; requests for one document run in sequence.

    Every method raises RequestTimeoutError after the timeout and ClusterError when the service is lost. A request that
    is cancelled or times out starts no further tasks. Tasks already sent are finished, stored blocks stay, and the
    same request can be repeated.
    """

    def __init__(self, executor: AttachedExecutor, driver: ClientDriver, timeout_s: float) -> None:
        self._executor = executor
        self._driver = driver
        self._timeout_s = timeout_s
        self._turns = count()

    @property
    def in_flight(self) -> int:
        """Number of segments and texts of this client that are in the service now."""
        return self._driver.in_flight

    @property
    def model(self) -> ModelDescription:
        """Model of the service."""
        return self._executor.describe()

    async def write(self, document: str, text: str, *, namespace: str = DEFAULT_NAMESPACE) -> WriteReceipt:
        """Store the keys and values of a document; segments already stored are not written again.

        Raises ConflictError when the document holds another text, DocumentError (no tokens), NumericError, StoreError.
        """
        key = DocumentKey(namespace, document)
        return await _within(self._timeout_s, f"writing {key}", self._write(key, text))

    async def score(
        self, text: str, document: str | None = None, *, namespace: str = DEFAULT_NAMESPACE, follows: bool = False
    ) -> TextScores:
        """Return log-probabilities of a text's tokens, with memory and without: the numbers of `LongMem.score`.

        With `document`, the text is that document: it is written segment by segment, and many workers score it. With
        `follows=True` the text continues the stored document. In that case, and without a document, nothing is written
        and one worker scores the whole text.

        Raises what `write` raises, and MissingBlockError when the text follows a document that is not stored.
        """
        if follows and document is None:
            raise ConfigError("follows=True needs the name of the document that the text follows")
        key = None if document is None else DocumentKey(namespace, document)
        if key is None or follows:
            request = ScoreRequest(text, key)
            return await _within(self._timeout_s, f"{request}", asyncio.wrap_future(self._driver.text(request)))
        return await _within(self._timeout_s, f"scoring {key}", self._score(key, text))

    async def generate(
        self,
        prompt: str,
        document: str | None = None,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        max_new_tokens: int = 50,
        sampling: Sampling | None = None,
    ) -> str:
        """Return the continuation of the prompt, which follows the stored document, as `LongMem.generate` does.

        Raises ConfigError, DocumentError (an empty prompt), MissingBlockError when the document is not stored.
        """
        key = None if document is None else DocumentKey(namespace, document)
        request = GenerateRequest(prompt, key, max_new_tokens, sampling or Sampling())
        text: str = await _within(self._timeout_s, f"{request}", asyncio.wrap_future(self._driver.text(request)))
        return text

    async def documents(self, namespace: str | None = None) -> list[DocumentKey]:
        """Return every stored document of a namespace (None: of all), sorted."""
        stores = self._executor.workers.stores.workers
        asked = [_answer("listing documents", store.actor.documents.remote(namespace)) for store in stores]
        found = await _within(self._timeout_s, "listing documents", asyncio.gather(*asked))
        return sorted({key for keys in found for key in keys})

    async def delete(self, document: str, *, namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete a document whose requests have ended. Return the number of removed blocks (0 if unknown)."""
        key = DocumentKey(namespace, document)
        return await _within(self._timeout_s, f"deleting {key}", self._delete(key))

    async def _write(self, key: DocumentKey, text: str) -> WriteReceipt:
        segments, infos = await self._prepared(key, text, scored=False)
        result = await self._read(segments, infos, scored=False)
        new = [receipt for receipt in result.receipts.values() if not receipt.duplicate]
        held = {info.segment: info.num_bytes for info in infos}
        held |= {receipt.segment: receipt.num_bytes for receipt in result.receipts.values()}
        return WriteReceipt(key, segments[-1].end_token, len(segments), len(new), sum(held.values()))

    async def _score(self, key: DocumentKey, text: str) -> TextScores:
        segments, infos = await self._prepared(key, text, scored=True)
        result = await self._read(segments, infos, scored=True)
        scores = [result.scores[segment.index] for segment in segments]
        return TextScores(
            logprobs=np.concatenate([score.logprobs for score in scores]),
            backbone_logprobs=joined_baseline([result.backbone_logprobs[segment.index] for segment in segments]),
            num_unscored_tokens=int(self.model.start_token is None),
            segments=scores,
        )

    async def _prepared(self, key: DocumentKey, text: str, *, scored: bool) -> tuple[list[Segment], list[SegmentInfo]]:
        """Return the text's segments, and the stored segments of the document.

        Encoder actors tokenise, because only they are sure to have the tokenizer's files.
        """
        encoders = self._executor.workers.encoders
        workers = encoders.usable or encoders.workers
        worker = workers[next(self._turns) % len(workers)]
        outcome: TaskResult = await _answer(f"tokenizing {key}", worker.actor.tokenize.remote(text))
        if outcome.error is not None:
            raise outcome.error
        tokenized: TokenizedText = outcome.result
        segment_tokens = self.model.settings["segment_tokens"]
        segments = cut_segments(key, tokenized.sequence, segment_tokens, scored=scored)
        shard = self._executor.workers.stores.shard(key)
        infos: list[SegmentInfo] = await _answer(f"listing {key}", shard.actor.segments.remote(key))
        return segments, infos

    async def _read(self, segments: list[Segment], infos: list[SegmentInfo], *, scored: bool) -> DocumentResult:
        request = DocumentRequest(segments, stored_segments(infos, segments), scored)
        return await asyncio.wrap_future(self._driver.read(request))

    async def _delete(self, key: DocumentKey) -> int:
        # evict windows before and after: any reader may hold one for any client, and a window that outlives the
        # document would be read for the next document of that name
        await self._evict_windows(key)
        shard = self._executor.workers.stores.shard(key)
        removed: int = await _answer(f"deleting {key}", shard.actor.delete.remote(key))
        await self._evict_windows(key)
        return removed

    async def _evict_windows(self, key: DocumentKey) -> None:
        workers = list(self._executor.workers.readers.workers)
        if self._executor.describe().settings["one_pass"]:
            # encoders read the memory, too
            workers += self._executor.workers.encoders.workers
        reached = (_answer(f"evicting {key}", each.actor.evict.remote(key)) for each in workers if not each.gone)
        await asyncio.gather(*reached)


async def _answer(doing: str, ref: Any) -> Any:
    with translated(doing):
        return await ref


async def _within(timeout_s: float, doing: str, work: Awaitable[Result]) -> Result:
    try:
        async with asyncio.timeout(timeout_s) as timeout:
            return await work
    except TimeoutError as error:
        if not timeout.expired() or isinstance(error, ClusterError):
            raise
        raise RequestTimeoutError(
            f"{doing} took more than {timeout_s:g} s and was given up; try again, or connect with a longer timeout_s"
        ) from error
