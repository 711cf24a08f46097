# SPDX-License-Identifier: Apache-2.0
"""Set-up and jobs shared by several end-to-end tests."""

import os
import signal
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from pipelines.perplexity.job import PerplexityJob, run_job

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Restore SIGTERM and the number of threads, which the command sets for its process."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


@pytest.fixture
def one_core() -> Iterator[None]:
    """Let the commands of a test use one core: by default they take all, which several test processes share."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> Path:
    """Return the output folder of a small finished job, run in this process."""
    folder = tmp_path_factory.mktemp("finished")
    small_model("llama").save_pretrained(folder / "model")
    (folder / "two-cities.txt").write_text(TEXT)
    run_job(
        PerplexityJob(
            inputs=(str(folder / "two-cities.txt"),),
            out=folder / "out",
            model=ModelSource(str(folder / "model")),
            cluster=None,
            threads=1,
            limits=Limits(4, 2**30),
        ),
        Console(file=StringIO()),
    )
    return folder / "out"
