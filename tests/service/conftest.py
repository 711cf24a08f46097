# SPDX-License-Identifier: Apache-2.0
"""One service for all tests here, because its workers take seconds to start; each test uses its own documents."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from actors.config import ClusterShape
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.store.config import StoreSettings
from longmem.testing import small_longmem
from tests.inputs import DEFAULT_FORM

if TYPE_CHECKING:
    from actors.client import MemoryClient

NAME = "shared-by-tests"


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder, **{**DEFAULT_FORM, "chunk_tokens": 4}).save_pretrained(folder / "checkpoint")
    return ModelSource(str(folder / "checkpoint"))


@pytest.fixture(scope="package")
def model(source: ModelSource) -> LongMem:
    return source.open()


@pytest.fixture(scope="package")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "memory.lance"


@pytest.fixture(scope="package")
def service(ray_cluster: None, source: ModelSource, store_folder: Path) -> Iterator[str]:
    """Start the service and yield its name."""
    from actors.service.registry import Service, start_service, stop_service

    shape = ClusterShape(encoders=2, readers=2, stores=2)
    start_service(Service(name=NAME, source=source, store=StoreSettings(str(store_folder)), shape=shape))
    yield NAME
    stop_service(NAME)


@pytest_asyncio.fixture
async def client(service: str) -> "AsyncIterator[MemoryClient]":
    from actors.client import connect

    async with connect(service=service, timeout_s=60) as client:
        yield client
