# SPDX-License-Identifier: Apache-2.0
"""Workers that are killed, clusters that are too small or absent, models that workers cannot open."""

import json
import os
import shutil
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from actors.config import ClusterShape
from actors.executor.timeouts import Timeouts
from longmem.errors import CheckpointError, ClusterError, ModelError
from longmem.model.source import ModelSource
from longmem.runtime.executor import Completion, Stage
from longmem.runtime.scheduler import Limits
from longmem.testing import small_longmem
from longmem.types import Segment
from pipelines.perplexity.job import PerplexityJob, run_job

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet", "readings.parquet", "passages.parquet")
NO_CLUSTER_S = 15.0
"""Longest time until a user gets the error that no process listens at an address; most of it is importing Ray."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def alive_actors() -> dict[str, Any]:
    """Return the living actors by class."""
    import ray
    from ray.util.state import list_actors

    # this test's own cluster, independent of others on the machine
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address=address, detail=True, filters=[("state", "=", "ALIVE")])
    return {actor.class_name: actor for actor in actors}


KILLS: dict[tuple[Stage, int], str] = {
    ("encode", 4): "EncoderActor",
    ("put", 8): "StoreActor",
    ("score", 3): "ReaderActor",
    ("score", 12): "StoreActor",
}
"""Process that dies during a stage, by the number of the long document's segment given to that stage."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make RayExecutor kill its workers according to KILLS; return the observations."""
    import actors.executor.ray_executor

    seen: dict[str, Any] = {"killed": [], "completed": []}

    class Killing(actors.executor.ray_executor.RayExecutor):
        def submit(self, stage: Stage, segment: Segment) -> None:
            victim = KILLS.get((stage, segment.index)) if segment.key.document == "long" else None
            if victim is None:
                super().submit(stage, segment)
                return
            if not seen["killed"]:
                workers = [actor for kind, actor in alive_actors().items() if kind != "JobMonitor"]
                seen["names"] = sorted(actor.repr_name for actor in workers)
            actor = alive_after_restart(victim)
            # stopped first, so that the worker surely holds the task when it dies
            os.kill(actor.pid, signal.SIGSTOP)
            super().submit(stage, segment)
            sleep(0.3)
            os.kill(actor.pid, signal.SIGKILL)
            seen["killed"].append((victim, actor.pid))

        def wait(self, timeout_s: float) -> list[Completion]:
            completions = super().wait(timeout_s)
            seen["completed"] += [(each.stage, str(each.segment.key), each.segment.index) for each in completions]
            return completions

        def close(self) -> None:
            if "restarts" not in seen:
                seen["restarts"] = {name: int(actor.num_restarts) for name, actor in alive_actors().items()}
            super().close()

    monkeypatch.setattr(actors.executor.ray_executor, "RayExecutor", Killing)
    return seen


def alive_after_restart(class_name: str) -> Any:
    deadline = monotonic() + 60
    while (actor := alive_actors().get(class_name)) is None:
        assert monotonic() < deadline, f"{class_name} did not come back"
        sleep(0.1)
    return actor


def test_killed_workers_change_nothing(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, killing: dict[str, Any]
) -> None:
    """Kill -9 an encoder, a store and a SideNet process, each with a running task, and the store while a reader waits.

    The job ends with unchanged results.
    """
    books = tmp_path / "books"
    books.mkdir()
    (books / "long.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 9)
    (books / "short.txt").write_text("It is a way I have of driving off the spleen.")
    found = {}
    for name, cluster in {"inline": None, "killed": ClusterShape(address="local")}.items():
        job = PerplexityJob(
            inputs=(str(books),),
            out=tmp_path / name,
            model=ModelSource(str(checkpoint)),
            cluster=cluster,
            threads=1,
            limits=Limits(4, 2**30),
            keep_tokens=True,
        )
        summary = run_job(job, Console(file=StringIO()))
        assert summary["failures"] == []
        found[name] = {table: (job.out / table).read_bytes() for table in TABLES}
    assert [name for name, _ in killing["killed"]].count("StoreActor") == 2
    assert sorted(name for name, _ in killing["killed"]) == sorted(KILLS.values())
    assert killing["restarts"] == {"EncoderActor": 1, "ReaderActor": 1, "StoreActor": 2}
    assert len(killing["completed"]) == len(set(killing["completed"]))
    assert found["killed"] == found["inline"]
    # visible to an operator in the dashboard
    encoder, store, sidenet = killing["names"]
    assert encoder == f"Encoder(rank=0, model={checkpoint}, threads=1)"
    assert sidenet == f"Reader(rank=0, model={checkpoint}, threads=1)"
    assert store.startswith("MemoryStore(shard=0, uri=")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"encoders": 20, "threads": 2}, r"needs 42 CPU, the cluster has 8.*--encoders"),
        ({"encoder_gpus": 1.0}, r"needs 1 GPU, the cluster has 0"),
    ],
)
def test_a_cluster_that_is_too_small_says_what_is_missing(
    ray_cluster: None, checkpoint: Path, tmp_path: Path, shape: dict[str, Any], message: str
) -> None:
    import ray

    from actors.executor.ray_executor import RayExecutor

    start = monotonic()
    with pytest.raises(ClusterError, match=message):
        RayExecutor(ModelSource(str(checkpoint)), str(tmp_path / "memory.lance"), ClusterShape(**shape))
    assert monotonic() - start < 5
    assert ray.is_initialized()


def test_a_job_without_room_says_what_it_waits_for_and_ends(
    ray_cluster: None, checkpoint: Path, tmp_path: Path
) -> None:
    """Start while other jobs hold all CPUs but one, which is not enough for an encoder and a reader."""
    import ray

    from actors.executor.ray_executor import RayExecutor
    from tests.ray_cluster import NUM_CPUS
    from tests.scripted_workers import Script, ScriptedReader

    other = ScriptedReader.options(num_cpus=NUM_CPUS - 1).remote(Script(tmp_path))
    ray.get(other.alive.remote())
    told: list[tuple[float, str]] = []
    shape = ClusterShape(address="local", timeouts=Timeouts(no_worker_s=4))
    begun = monotonic()
    try:
        # both workers, or the one for which no CPU is left when the other has started in time
        with pytest.raises(ClusterError, match=r"[12] workers? did not start within 4 s.*--cpu-share.*--address local"):
            RayExecutor(
                ModelSource(str(checkpoint)),
                str(tmp_path / "memory.lance"),
                shape,
                lambda text: told.append((monotonic() - begun, text)),
            )
    finally:
        ray.kill(other)
    assert monotonic() - begun < 20
    ((_, where), (told_s, text)) = told
    assert where.startswith(f"uses the Ray cluster at {ray.get_runtime_context().gcs_address}, ")
    assert where.endswith("; 1 of 8 CPUs are free")
    assert told_s < 2
    assert "it waits for 2 CPU, the cluster has 1 free" in text
    assert "It waits for at most 4 s" in text
    assert "--address local" in text


def check_no_actors() -> None:
    """Wait for actors to die, for 10 s at most."""
    deadline = monotonic() + 10
    while alive_actors() and monotonic() < deadline:
        sleep(0.1)
    assert alive_actors() == {}


def test_a_model_that_workers_cannot_open_keeps_its_error_and_leaves_nothing(
    ray_cluster: None, checkpoint: Path, tmp_path: Path
) -> None:
    import ray

    from actors.executor.ray_executor import RayExecutor

    surplus = Path(shutil.copytree(checkpoint / "backbone", tmp_path / "surplus"))
    weights = {name: tensor.clone() for name, tensor in load_file(surplus / "model.safetensors").items()}
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(weights, surplus / "model.safetensors", {"format": "pt"})
    # those of the test before die a little later than its executor is closed
    check_no_actors()
    # an absent model is in tests/service/test_life_of_a_service.py
    source = ModelSource(str(surplus))
    with pytest.raises(ModelError, match=r"q_proj\.bias") as caught:
        RayExecutor(source, str(tmp_path / "memory.lance"), ClusterShape())
    with pytest.raises(ModelError) as inline:
        source.open()
    assert type(caught.value) is type(inline.value)
    assert str(caught.value) == str(inline.value)
    check_no_actors()
    assert ray.is_initialized()


@pytest.mark.parametrize("lacking", ["name", "longmem", "dtype", "backbone_digest", "sidenet_digest"])
def test_a_checkpoint_that_lacks_a_field_is_a_checkpoint_error(checkpoint: Path, tmp_path: Path, lacking: str) -> None:
    """Open a checkpoint of another version: no KeyError that ends a job with a traceback of a remote process."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    values = json.loads((folder / "config.json").read_text())
    del values[lacking]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=lacking):
        ModelSource(str(folder)).open()


CONNECT = """
from actors.cluster import connect
from longmem.errors import ClusterError
try:
    connect("127.0.0.1:1", num_cpus=2, object_store_bytes=2**28)
except ClusterError as error:
    print(error)
"""


def test_an_address_where_nothing_listens_is_an_error_soon() -> None:
    """Run in a process of its own: Ray retries for minutes inside C++ code that handles no signal but SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, _ = process.communicate(timeout=NO_CLUSTER_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"no answer within {NO_CLUSTER_S:g} s")
    finally:
        process.kill()
        process.communicate()
    assert "127.0.0.1:1" in printed
    assert "--address" in printed
