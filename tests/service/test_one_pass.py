# SPDX-License-Identifier: Apache-2.0
"""A service whose model encodes in one pass gives the numbers of Python, also under a name that is used again."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.store.config import StoreSettings
from longmem.store.in_memory import InMemoryStore
from tests.inputs import ONE_PASS
from tests.texts import prose

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]


@pytest.mark.asyncio
async def test_scores_are_those_of_python(
    ray_cluster: None, small_model: Callable[..., LongMem], tmp_path: Path
) -> None:
    from actors.client import connect
    from actors.service.registry import Service, start_service, stop_service

    small_model(**ONE_PASS).save_pretrained(tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), settings={"one_pass": True})
    shape = ClusterShape(encoders=2, readers=1, stores=1)
    model, store = source.open(), StoreSettings(str(tmp_path / "memory.lance"))
    texts = [prose(seed, 60) for seed in range(3)]
    start_service(Service(name="one-pass", source=source, store=store, shape=shape))
    try:
        async with connect(service="one-pass", timeout_s=60) as client, connect(service="one-pass") as other:
            found = await asyncio.gather(client.score(texts[0], "a"), other.score(texts[1], "b"))
            await client.delete("a")
            await client.delete("b")
            found += [await client.score(texts[2], name) for name in ("a", "b")]
            await client.write("c", texts[0])
            follows = await client.score(texts[1], "c", follows=True)
            with pytest.raises(ConfigError, match="one_pass=True scores documents"):
                await client.generate("It was", "c", max_new_tokens=4)
    finally:
        stop_service("one-pass")
    assert [scores.backbone_logprobs for scores in found] == [None] * 4
    for scores, text in zip(found, [*texts[:2], texts[2], texts[2]], strict=True):
        assert np.array_equal(scores.logprobs, model.score(text).logprobs)
    with InMemoryStore() as memories:
        model.score(texts[0], memories.document("c"))
        expected = model.score(texts[1], memories.document("c").as_read_only())
    assert np.array_equal(follows.logprobs, expected.logprobs)
    assert follows.backbone_logprobs is None
