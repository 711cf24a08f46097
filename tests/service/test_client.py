# SPDX-License-Identifier: Apache-2.0
"""The asyncio client of a service: LongMem's numbers under concurrent load; limits, timeouts, cancellation."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from longmem.errors import (
    ClusterError,
    ConfigError,
    ConflictError,
    CorruptionError,
    DocumentError,
    FingerprintError,
    MissingBlockError,
    RequestTimeoutError,
)
from longmem.model.longmem import LongMem
from longmem.model.source import describe
from longmem.runtime.executor import Stage
from longmem.runtime.steps import OnStep, ignore_step
from longmem.scoring.generate import Sampling
from longmem.scoring.text import TextScores
from longmem.store.in_memory import InMemoryStore
from longmem.testing import small_longmem
from longmem.types import DocumentKey, Segment

if TYPE_CHECKING:
    from actors.client import MemoryClient

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

PATIENCE_S = 60.0
LONG = "Call me Ishmael. Some years ago, never mind how long precisely, having little money. " * 3
NEXT = "It is a way I have of driving off the spleen, and regulating the circulation."


def same(found: TextScores, expected: TextScores) -> bool:
    return (
        found.logprobs.tobytes() == expected.logprobs.tobytes()
        and found.backbone_logprobs.tobytes() == expected.backbone_logprobs.tobytes()
        and found.num_unscored_tokens == expected.num_unscored_tokens
        and [each.retrieval.chunks_digest for each in found.segments]
        == [each.retrieval.chunks_digest for each in expected.segments]
    )


@pytest.mark.asyncio
async def test_the_numbers_are_those_of_longmem(client: "MemoryClient", model: LongMem) -> None:
    with InMemoryStore() as store:
        memory = store.document("long")
        document = model.score(LONG, memory)
        follows = model.score(NEXT, memory.as_read_only())
        said = model.generate("It was", memory, max_new_tokens=40)
        sampling = Sampling(temperature=0.8, top_p=0.9, seed=3)
        sampled = model.generate("It was", memory, max_new_tokens=40, sampling=sampling)
    alone = model.score(NEXT)
    assert not same(follows, alone)
    assert said != model.generate("It was", max_new_tokens=40)

    assert same(await client.score(LONG, "long"), document)
    assert same(await client.score(NEXT, "long", follows=True), follows)
    assert same(await client.score(NEXT), alone)
    assert same(await client.score(LONG, "long"), document)
    assert await client.generate("It was", "long", max_new_tokens=40) == said
    assert await client.generate("It was", "long", max_new_tokens=40, sampling=sampling) == sampled
    assert await client.generate("It was", max_new_tokens=40) == model.generate("It was", max_new_tokens=40)


@pytest.mark.asyncio
async def test_writing_is_idempotent_and_keeps_the_first_text(client: "MemoryClient", model: LongMem) -> None:
    tokens = len(model.tokenizer.sequence(LONG))
    first = await client.write("book", LONG, namespace="writing")
    assert first.num_tokens == tokens
    assert first.num_segments == first.num_new_segments == -(-tokens // 32)
    again = await client.write("book", LONG, namespace="writing")
    assert again.num_new_segments == 0
    assert again.num_bytes == first.num_bytes > 0
    with pytest.raises(ConflictError, match="another text"):
        await client.write("book", NEXT, namespace="writing")
    with pytest.raises(ConflictError, match="another text"):
        await client.score(LONG[:-1], "book", namespace="writing")
    assert [str(key) for key in await client.documents("writing")] == ["writing/book"]
    assert await client.delete("book", namespace="writing") == first.num_segments
    assert await client.documents("writing") == []
    assert await client.delete("book", namespace="writing") == 0


@pytest.mark.asyncio
async def test_a_name_that_is_used_again_reads_nothing_of_before(
    service: str, client: "MemoryClient", model: LongMem
) -> None:
    """Delete a document: readers' windows of it must go too, also those of other clients' requests."""
    from actors.client import connect

    with InMemoryStore() as store:
        expected = model.score(LONG[::-1], store.document("name"))
    async with connect(service=service) as other:
        await asyncio.gather(
            other.score(LONG, "name", namespace="again"), client.score(LONG, "name", namespace="again")
        )
    await client.delete("name", namespace="again")
    assert same(await client.score(LONG[::-1], "name", namespace="again"), expected)


@pytest.mark.asyncio
async def test_bad_requests_say_what_is_wrong_and_harm_nothing(client: "MemoryClient") -> None:
    with pytest.raises(MissingBlockError, match="default/nowhere is not stored"):
        await client.generate("It was", "nowhere")
    with pytest.raises(MissingBlockError, match="not stored"):
        await client.score(NEXT, "nowhere", follows=True)
    with pytest.raises(ConfigError, match="follows=True needs"):
        await client.score(NEXT, follows=True)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        await client.generate("It was", max_new_tokens=0)
    with pytest.raises(DocumentError, match="no tokens"):
        await client.write("empty", "")
    assert (await client.write("after", NEXT)).num_new_segments > 0


@contextmanager
def without_newest_commit(store: Path) -> Iterator[None]:
    """Revert the catalogue by one commit inside the block; restore the manifest afterwards, because other tests use
    it."""
    newest = min((store / "catalogue.lance" / "_versions").glob("*.manifest"))
    newest.rename(store.parent / newest.name)
    try:
        yield
    finally:
        (store.parent / newest.name).rename(newest)


@pytest.mark.asyncio
async def test_a_service_whose_store_has_lost_commits_answers_with_an_error(
    client: "MemoryClient", store_folder: Path
) -> None:
    """Check every operation that reads or writes memory; a text without memory is scored as before."""
    expected = await client.score(LONG, "lost")
    with without_newest_commit(store_folder):
        for request in (
            client.score(NEXT, "lost", follows=True),
            client.generate("It was", "lost", max_new_tokens=2),
            client.score(LONG, "lost"),
            client.write("lost", LONG),
            client.documents(),
        ):
            with pytest.raises(CorruptionError, match=r"has lost writes that were acknowledged.*repair"):
                await request
    assert same(await client.score(LONG, "lost"), expected)


# --- limits, time-outs, cancellation ------------------------------------------------------------------------------


@contextmanager
def stopped(client: "MemoryClient", pool: str) -> Iterator[None]:
    """Suspend all workers of a pool inside the block, and resume them after it."""
    pids = [worker.info.pid for worker in getattr(client._executor.workers, pool).workers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_no_more_is_in_flight_than_allowed(service: str, model: LongMem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send many requests at once: those beyond the limit wait in their await."""
    from actors.client import connect
    from actors.service.executor import AttachedExecutor

    held: set[Any] = set()
    peaks: list[int] = []

    class Counting(AttachedExecutor):
        def submit(self, stage: Stage, segment: Segment) -> None:
            held.add((segment.key, segment.index))
            peaks.append(len(held) + len(texts))
            super().submit(stage, segment)

        def release(self, segment: Segment) -> None:
            held.discard((segment.key, segment.index))
            super().release(segment)

        def ask(self, request: Any, on_step: OnStep = ignore_step) -> int:
            texts.add(number := super().ask(request, on_step))
            peaks.append(len(held) + len(texts))
            return number

        def answers(self) -> list[Any]:
            answers = super().answers()
            texts.difference_update(each.number for each in answers)
            return answers

    texts: set[int] = set()
    monkeypatch.setattr("actors.service.executor.AttachedExecutor", Counting)
    async with connect(service=service, max_in_flight=3) as client:
        writes = [client.write(f"book {number}", LONG, namespace="limits") for number in range(4)]
        found = await asyncio.gather(*writes, *(client.score(NEXT) for _ in range(4)))
        assert client.in_flight == 0
    assert [each.num_new_segments for each in found[:4]] == [len(model.score(LONG).segments)] * 4
    assert max(peaks) == 3
    assert held == texts == set()


@pytest.mark.asyncio
async def test_a_request_that_takes_too_long_is_given_up_and_can_be_made_again(
    service: str, client: "MemoryClient", model: LongMem
) -> None:
    from actors.client import connect

    with InMemoryStore() as store:
        expected = model.score(LONG, store.document("long"))
    async with connect(service=service, timeout_s=1.5, max_in_flight=4) as hasty:
        with stopped(client, "readers"), pytest.raises(RequestTimeoutError, match=r"late/long took more than 1.5 s"):
            await hasty.score(LONG, "long", namespace="late")
        await until(lambda: hasty.in_flight == 0)
    assert same(await client.score(LONG, "long", namespace="late"), expected)


@pytest.mark.asyncio
async def test_a_cancelled_request_starts_nothing_more(service: str, client: "MemoryClient", model: LongMem) -> None:
    from actors.client import connect

    with InMemoryStore() as store:
        expected = model.score(LONG, store.document("long"))
    async with connect(service=service, timeout_s=PATIENCE_S, max_in_flight=4) as other:
        with stopped(client, "readers"):
            request = asyncio.create_task(other.score(LONG, "long", namespace="cancelled"))
            again = asyncio.create_task(other.score(LONG, "long", namespace="cancelled"))
            await until(lambda: other.in_flight == 4)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        # requests queued behind it for this document continue
        assert same(await again, expected)
        with stopped(client, "readers"):
            request = asyncio.create_task(other.score(LONG, "short", namespace="cancelled"))
            await until(lambda: other.in_flight == 4)
            request.cancel()
        await until(lambda: other.in_flight == 0)
    written = await client.write("short", LONG, namespace="cancelled")
    # at most the requests in flight were stored
    assert written.num_new_segments >= written.num_segments - 4 > 0


@pytest.mark.asyncio
async def test_a_closed_client_ends_what_runs(service: str, client: "MemoryClient") -> None:
    from actors.client import connect

    async with connect(service=service) as other:
        with stopped(client, "readers"):
            request = asyncio.create_task(other.score(LONG, "long", namespace="closed"))
            await until(lambda: other.in_flight > 0)
            other._driver.close()
            with pytest.raises(ClusterError, match="client was closed"):
                await request


# --- many clients, and workers that die ---------------------------------------------------------------------------

VICTIM = """
import asyncio, sys
from actors.client import connect

async def main(address, service, text):
    async with connect(address, service) as client:
        working = [asyncio.create_task(client.score(text * 50, f"victim {n}", namespace="victim")) for n in range(3)]
        while client.in_flight == 0:
            await asyncio.sleep(0.01)
        print("working", flush=True)
        await asyncio.gather(*working)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.asyncio
async def test_many_clients_at_once_and_one_of_them_is_killed(service: str, model: LongMem) -> None:
    import ray

    from actors.client import connect

    with InMemoryStore() as store:
        memory = store.document("long")
        document = model.score(LONG, memory)
        follows = model.score(NEXT, memory.as_read_only())
        said = model.generate("It was", memory, max_new_tokens=10)
    address = ray.get_runtime_context().gcs_address
    arguments = [sys.executable, "-c", VICTIM, address, service, LONG]
    victim = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert victim.stdout is not None

    async def use(number: int) -> bool:
        async with connect(service=service, timeout_s=PATIENCE_S) as client:
            name, namespace = f"long {number}", "many"
            good = [same(await client.score(LONG, name, namespace=namespace), document)]
            together = await asyncio.gather(
                client.score(NEXT, name, namespace=namespace, follows=True),
                client.generate("It was", name, namespace=namespace, max_new_tokens=10),
                client.write(name, LONG, namespace=namespace),
            )
            good += [same(together[0], follows), together[1] == said, together[2].num_new_segments == 0]
            return all(good)

    try:
        assert await asyncio.to_thread(victim.stdout.readline) == "working\n"
        uses = [asyncio.create_task(use(number)) for number in range(10)]
        await asyncio.sleep(0)
        victim.kill()
        assert await asyncio.gather(*uses) == [True] * 10
    finally:
        victim.kill()
        victim.communicate()


@pytest.mark.asyncio
async def test_workers_that_are_killed_change_nothing(client: "MemoryClient", model: LongMem) -> None:
    """Kill one worker of each kind, among them the document's own store."""
    text = LONG * 4
    with InMemoryStore() as store:
        expected = model.score(text, store.document("long"))
    workers = client._executor.workers
    shard = workers.stores.shard(DocumentKey("killed", "long"))
    request = asyncio.create_task(client.score(text, "long", namespace="killed"))
    await until(lambda: client.in_flight > 3)
    for worker in (workers.encoders.workers[0], workers.readers.workers[0], shard):
        assert worker.info is not None
        os.kill(worker.info.pid, signal.SIGKILL)
    assert same(await request, expected)


# --- errors of connecting -----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_service_that_is_missing_or_holds_another_model_is_refused(
    service: str, model: LongMem, tmp_path: Path
) -> None:
    from actors.client import connect

    with pytest.raises(ClusterError, match=rf"no service 'nowhere' on this cluster \(there is: {service}\)"):
        async with connect(service="nowhere"):
            pytest.fail("attached to nothing")
    other = describe(small_longmem(tmp_path, seed=1))
    with pytest.raises(FingerprintError, match=r"another model \(held != offered\): .*backbone"):
        async with connect(service=service, model=other):
            pytest.fail("attached to another model")
    async with connect(service=service, model=describe(model)) as client:
        assert client.model.sidenet == describe(model).sidenet
    with pytest.raises(ConfigError, match="max_in_flight must be greater than 0"):
        async with connect(service=service, max_in_flight=0):
            pytest.fail("attached with a limit of nothing")
