"""The asyncio client of a service: the numbers of LongMem, whatever else goes on; limits, time-outs, cancellation."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from actors.shape import ClusterShape
from longmem.errors import (
    ConfigError,
    ConflictError,
    DocumentError,
    MissingBlockError,
)
from longmem.generation import Sampling
from longmem.memory.in_memory import InMemoryStore
from longmem.model import LongMem
from longmem.model_source import ModelSource
from longmem.scoring import TextScores
from longmem.testing import small_longmem
from tests.inputs import DEFAULT_FORM

if TYPE_CHECKING:
    from actors.client import MemoryClient

pytest_plugins = ["tests.ray_cluster"]
pytestmark = pytest.mark.ray

NAME = "of-clients"
LONG = "Call me Ishmael. Some years ago, never mind how long precisely, having little money. " * 3
NEXT = "It is a way I have of driving off the spleen, and regulating the circulation."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder, **{**DEFAULT_FORM, "chunk_tokens": 4}).save_pretrained(folder / "checkpoint")
    return ModelSource(str(folder / "checkpoint"))


@pytest.fixture(scope="module")
def model(source: ModelSource) -> LongMem:
    return source.open()


@pytest.fixture(scope="module")
def service(ray_cluster: None, source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests, because Ray workers take seconds to start; tests use documents of their own."""
    from actors.service import Service, start_service, stop_service

    shape = ClusterShape(encoders=2, readers=2, stores=2)
    start_service(
        Service(name=NAME, source=source, store_uri=str(tmp_path_factory.mktemp("store") / "m.lance"), shape=shape)
    )
    yield NAME
    stop_service(NAME)


@pytest_asyncio.fixture
async def client(service: str) -> "AsyncIterator[MemoryClient]":
    from actors.client import connect

    async with connect(service=service, timeout_s=60) as client:
        yield client


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
    assert (first.num_tokens, first.num_segments, first.num_new_segments) == (
        tokens,
        -(-tokens // 32),
        -(-tokens // 32),
    )
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
async def test_a_name_that_is_used_again_reads_nothing_of_before(client: "MemoryClient", model: LongMem) -> None:
    """Windows of readers must go with the document, also those of other clients' requests."""
    from actors.client import connect

    with InMemoryStore() as store:
        expected = model.score(LONG[::-1], store.document("name"))
    async with connect(service=NAME) as other:
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
