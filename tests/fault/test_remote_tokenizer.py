# SPDX-License-Identifier: Apache-2.0
"""Tokenising in encoders that are killed, hang, or are gone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from time import monotonic, sleep

import pytest
import ray
from rich.console import Console

from actors.config import ClusterShape
from actors.executor.ray_executor import RayExecutor
from actors.executor.remote_tokenizer import RemoteTokenizer
from actors.executor.timeouts import Timeouts
from actors.workers.base import WorkerInfo
from actors.workers.encoder import EncoderActor
from actors.workers.pools import ActorPool
from actors.workers.store import RemoteBlockSource
from longmem.errors import ClusterError, DocumentError
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from longmem.testing import small_longmem
from longmem.text.tokenizer import AbstractTokenizer
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.poison import POISON, PoisonedTokenizerSource

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

TEXT = "Call me Ishmael."
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def executor(ray_cluster: None, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    source = PoisonedTokenizerSource(str(checkpoint))
    shape = ClusterShape(address="local", encoders=1, readers=1)
    with RayExecutor(source, str(tmp_path_factory.mktemp("store") / "memory.lance"), shape) as running:
        assert isinstance(running, RayExecutor)
        yield running


@pytest.fixture
def expected(checkpoint: Path) -> list[int]:
    sequence: list[int] = ModelSource(str(checkpoint)).open_tokenizer().sequence(TEXT).tolist()
    return sequence


def process_of(executor: RayExecutor) -> WorkerInfo:
    (worker,) = executor._workers.encoders.workers
    assert worker.info is not None
    return worker.info


def test_a_call_to_a_hanging_encoder_can_be_stopped(executor: RayExecutor) -> None:
    tokenizer = executor.tokenizer()
    pid = process_of(executor).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as threads:
            running = threads.submit(tokenizer.sequence, TEXT)
            sleep(0.5)
            assert not running.done()
            begun = monotonic()
            tokenizer.stop()
            with pytest.raises(ClusterError, match="tokenising was stopped"):
                running.result(timeout=10)
            assert monotonic() - begun < 5
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_text_is_tokenised_by_the_next_process_of_a_killed_encoder(
    executor: RayExecutor, expected: list[int]
) -> None:
    tokenizer = executor.tokenizer()
    os.kill(process_of(executor).pid, signal.SIGKILL)
    assert tokenizer.sequence(TEXT).tolist() == expected


def test_a_text_that_ends_each_encoder_is_an_error_of_that_text(executor: RayExecutor, expected: list[int]) -> None:
    tokenizer = RemoteTokenizer(executor._workers.encoders, executor.describe(), nullcontext, deaths=2)
    with pytest.raises(DocumentError, match="each encoder ended 2 times while it tokenised this text of 17 characters"):
        tokenizer.sequence(TEXT + POISON)
    assert tokenizer.sequence(TEXT).tolist() == expected


def test_encoders_that_ended_for_good_are_no_fault_of_the_text(executor: RayExecutor) -> None:
    actor = EncoderActor.remote(ModelSource("none"), 0, 1, RemoteBlockSource([]), 1)
    ray.kill(actor, no_restart=True)
    tokenizer = RemoteTokenizer(ActorPool([actor], ["none"]), executor.describe(), nullcontext, deaths=2)
    with pytest.raises(ClusterError, match="no encoder is left"):
        tokenizer.sequence(TEXT)


def test_a_job_goes_on_when_an_encoder_hangs_before_it_tokenises(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send SIGSTOP to the encoder before the first text: nothing else is running then."""
    import actors.executor.ray_executor

    stopped = []

    class Stopping(RayExecutor):
        def tokenizer(self) -> AbstractTokenizer:
            info = process_of(self)
            os.kill(info.pid, signal.SIGSTOP)
            stopped.append(info.pid)
            return super().tokenizer()

    def run(name: str, cluster: ClusterShape | None) -> Callable[[str], bytes]:
        (tmp_path / "a.txt").write_text(TEXT * 10, "utf-8")
        job = PerplexityJob(
            inputs=(str(tmp_path / "a.txt"),),
            out=tmp_path / name,
            model=ModelSource(str(checkpoint)),
            cluster=cluster,
            threads=1,
            limits=Limits(4, 2**30),
        )
        assert run_job(job, Console(file=StringIO()))["failures"] == []
        return lambda table: (job.out / table).read_bytes()

    monkeypatch.setattr(actors.executor.ray_executor, "RayExecutor", Stopping)
    shape = ClusterShape(address="local", timeouts=Timeouts(unresponsive_s=1, kill_s=3))
    hung, alone = run("hung", shape), run("alone", None)
    assert len(stopped) == 1
    for table in ("documents.parquet", "segments.parquet"):
        assert hung(table) == alone(table)


WHOLE_JOB = """
import json, sys
from pipelines.cli import main
try:
    main()
finally:
    print(json.dumps([name for name in ("torch", "transformers", "lancedb") if name in sys.modules]))
"""


def test_the_command_of_a_whole_job_imports_no_torch(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    arguments = ["perplexity", "a.txt", "--model", str(checkpoint), "--address", "local", "--threads", "1"]
    arguments += ["--tokens", "--limit-tokens", "9", "--window", "8", "--out", "out"]
    ended = subprocess.run(
        [sys.executable, "-c", WHOLE_JOB, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(ended.stdout.splitlines()[-1]) == []
