# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: figures of real trainings, read back with the tracker's own reader, without a network."""

import csv
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longmem.errors import ConfigError
from pipelines.command.tracking_option import TrackOption
from pipelines.tracking.tracker import AbstractTracker, Outcome, TrackedRun, Tracking, check_tracker, tracked
from tests.jobs import Inputs, train, write_inputs

pytestmark = [
    # warnings of the trackers' own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Figures = dict[str, dict[int, float]]
RUN_MLFLOW = """
import json, sys
import mlflow
client = mlflow.MlflowClient()
[experiment] = [each for each in client.search_experiments() if each.name == "books"]
[run] = client.search_runs([experiment.experiment_id])
names = list(run.data.metrics)
history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
print(json.dumps({
    "figures": {name: {each.step: each.value for each in history[name]} for name in names},
    "status": run.info.status, "params": run.data.params, "name": run.info.run_name,
}))
"""


def needs(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: pip install {package}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("tracking"))


def run_training(inputs: Inputs, out: Path, track: str) -> str:
    """Train three steps with a tracker, and return what the command says."""
    from dataclasses import replace

    run, job = train(inputs, out)
    said = Console(file=StringIO(), width=200)
    run(replace(job, track=track, task=replace(job.task, validation=(str(inputs.books),))), said)
    file = said.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def curve(out: Path) -> Figures:
    """Return the figures that a tracker must hold, from the job's own curves."""
    figures: Figures = {}
    for name, prefix in (("curve.csv", "train/"), ("validation.csv", "valid/perplexity_")):
        with (out / name).open(newline="") as file:
            for row in csv.DictReader(file):
                for column in row.keys() & {"loss", "learning_rate", "gradient_norm", "with_memory", "backbone"}:
                    figures.setdefault(prefix + column, {})[int(row["step"])] = float(row[column])
    assert set(figures) >= {"train/loss", "valid/perplexity_with_memory"}
    return figures


def assert_holds(found: Figures, expected: Figures) -> None:
    for name, steps in expected.items():
        # curves have six digits
        assert found[name] == pytest.approx(steps, rel=1e-4, abs=1e-6), name


def in_tensorboard(folder: Path) -> Figures:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: {each.step: each.value for each in events.Scalars(name)} for name in events.Tags()["scalars"]}


@needs("tensorboard")
def test_tensorboard_reads_what_a_training_wrote(inputs: Inputs, tmp_path: Path) -> None:
    said = run_training(inputs, tmp_path / "out", "tensorboard")
    assert "tracking with tensorboard: tensorboard --logdir" in said
    assert_holds(in_tensorboard(tmp_path / "out" / "tensorboard"), curve(tmp_path / "out"))


@needs("tensorboard")
def test_tensorboard_of_a_resumed_job_has_each_step_once(tmp_path: Path) -> None:
    from pipelines.tracking.tensorboard_tracker import TensorBoardTracker

    for first, steps, value in ((0, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        tracker = TensorBoardTracker(TrackedRun(tmp_path, "train", "id", {"steps": 4}))
        tracker.begin(first)
        for step in steps:
            tracker.add(step, {"train/loss": value})
        tracker.close("finished")
    assert in_tensorboard(tmp_path / "tensorboard")["train/loss"] == {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0}


@needs("mlflow")
@pytest.mark.parametrize("store", ["sqlite:///{}/runs.db", "file://{}/runs"])
def test_mlflow_reads_what_a_training_wrote(
    store: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "books")
    # MLflow 3.17 takes a folder only where it is asked for by name
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_training(inputs, tmp_path / "out", "mlflow")
    # another process, as a user's
    read = subprocess.run([sys.executable, "-c", RUN_MLFLOW], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(read.stdout.splitlines()[-1])
    figures = {name: {int(step): value for step, value in steps.items()} for name, steps in found["figures"].items()}
    assert_holds(figures, curve(tmp_path / "out"))
    assert (found["status"], found["name"], found["params"]["steps"]) == ("FINISHED", "out", "3")


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: a log in LevelDB's format behind seven bytes (0.31 has no Python reader)."""
    position, block, record = 7, 32768, b""
    assert data[:4] == b":W&B"
    while position < len(data):
        if (rest := block - position % block) < 7:
            position += rest
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        # a whole record, or the last of its parts
        if kind in (1, 4):
            yield record
            record = b""


@needs("wandb")
def test_wandb_offline_keeps_what_a_training_wrote(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    run_training(inputs, tmp_path / "out", "wandb")
    [path] = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    figures: Figures = {}
    for data in wandb_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        row = {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in record.history.item}
        for name, value in row.items():
            if "/" in name and "step" in row:
                figures.setdefault(name, {})[row["step"]] = value
    assert_holds(figures, curve(tmp_path / "out"))


class Failing(AbstractTracker):
    """Tracker whose server goes away after one step."""

    place = "nowhere"

    def __init__(self) -> None:
        self.calls: list[object] = []

    def begin(self, first_step: int) -> None:
        self.calls.append(first_step)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self.calls.append((step, dict(figures)))
        if step > 1:
            raise OSError("the server is gone")

    def close(self, outcome: Outcome) -> None:
        self.calls.append(outcome)


def test_a_tracker_that_fails_is_told_once_and_no_longer_called() -> None:
    tracker, told = Failing(), list[str]()
    tracking = Tracking(tracker, told.append)
    tracking.begin(0)
    for step in (1, 2, 3):
        tracking.add(step, {"train/loss": 1.0})
    tracking.close("finished")
    assert tracker.calls == [0, (1, {"train/loss": 1.0}), (2, {"train/loss": 1.0})]
    assert told == ["tracking has ended: OSError: the server is gone; the training goes on"]


@pytest.mark.parametrize(
    ("end", "outcome"), [(None, "finished"), (KeyboardInterrupt, "interrupted"), (ValueError, "failed")]
)
def test_the_outcome_of_the_job_ends_the_run(
    end: type[BaseException] | None, outcome: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracker = Failing()
    monkeypatch.setattr("pipelines.tracking.tracker.check_tracker", lambda name: None)
    monkeypatch.setattr(
        "pipelines.tracking.tracker.import_module", lambda name: type("M", (), {"T": lambda run: tracker})
    )
    monkeypatch.setattr("pipelines.tracking.tracker.TRACKERS", {"other": "T"})
    told = list[str]()

    def run() -> None:
        with tracked("other", TrackedRun(tmp_path, "train", "id", {}), told.append) as tracking:
            tracking.add(1, {})
            if end is not None:
                raise end

    if end is None:
        run()
    else:
        with pytest.raises(end):
            run()
    assert tracker.calls[-1] == outcome
    assert told == ["tracking with other: nowhere"]


def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.tracker.find_spec", lambda name: None)
    for check in (lambda: check_tracker("mlflow"), TrackOption(track="mlflow").check_track):
        with pytest.raises(ConfigError, match=r"pip install 'longmem\[mlflow\]'"):
            check()


def test_a_job_without_a_tracker_tracks_nothing(tmp_path: Path) -> None:
    told: Callable[[str], None] = pytest.fail
    with tracked(None, TrackedRun(tmp_path, "train", "id", {}), told) as tracking:
        tracking.begin(0)
        tracking.add(1, {"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []
