# SPDX-License-Identifier: Apache-2.0
"""Training job, from its options to its output folder: steps, curves, checkpoints, the trained model.

out/job.json · curve.csv · validation.csv · curves.png · checkpoints/ · model/ · training.json
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from rich.console import Console

import longmem
from longmem.errors import ConfigError
from longmem.model.source import ModelDescription
from longmem.text.documents import FoundFiles, shown_inputs
from longmem.training.checkpoint import checkpoints
from longmem.training.trainer import StepResult
from longmem.training.validation import Validation
from longmem.training.worker import TrainingTask, TrainingWorker
from longmem.wording import signed
from pipelines.command.choices import TrackerName
from pipelines.command.command_line import check_device
from pipelines.command.interrupts import held_interrupts
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.job.observer import JobObserver
from pipelines.job.requested_model import describe_request
from pipelines.job.runner import run_to_end
from pipelines.job.spec import AbstractJob, JobContext, Tell
from pipelines.tracking.tracker import TrackedRun, tracked
from pipelines.train.curves import CurveFiles

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
RESULTS = "training.json"
PERPLEXITIES = {"with_memory": "with memory", "without_memory": "without memory", "backbone": "backbone alone"}
"""Labels in the plot by column of `validation.csv`; columns are fields of `Validation`."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Validated options of the job. Raises ConfigError."""

    task: TrainingTask
    out: Path
    workers: int = 1
    address: str = "none"
    """Address of the Ray cluster (see `actors.cluster.connect`); `none` trains in this process."""
    validate_every: int = 200
    checkpoint_every: int = 200
    resume: bool = False
    track: TrackerName | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("workers", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        check_device(self.task.model.device)
        if self.address == "none" and self.workers > 1:
            raise ConfigError(f"--workers {self.workers} needs Ray; add --address local")


class Training(Protocol):
    """Interface of one training worker, or of several that act as one."""

    def describe(self) -> ModelDescription: ...
    def step(self) -> StepResult: ...
    def validate(self) -> Validation | None: ...
    def row_states(self) -> list[dict[str, int]]: ...
    def save(self, folder: Path, row_states: list[dict[str, int]]) -> Path: ...
    def load(self, checkpoint: Path) -> int: ...
    def export(self, folder: Path, trained_steps: int) -> None: ...


@contextmanager
def open_training(job: TrainingJob, tell: Tell) -> Iterator[Training]:
    """Open workers in this process or on Ray, imported only if needed. `tell` receives messages for the user."""
    if job.address == "none":
        yield TrainingWorker(job.task, range(job.task.config.rows))
        return
    from actors.training import RayTraining

    training = RayTraining(job.task, job.workers, job.address, tell)
    try:
        yield training
    finally:
        training.close()


def run_training(job: TrainingJob, console: Console) -> dict[str, Any]:
    """Train (or resume training) and return the content of training.json; see `pipelines.job.runner.run`.

    Ctrl-C leaves a checkpoint.
    """
    return run_to_end(Train(job), console)


class Train(AbstractJob[Training]):
    """Training of a SideNet that reads from memory."""

    name = "train"
    results = RESULTS

    def __init__(self, spec: TrainingJob) -> None:
        self._spec = spec
        self._found: FoundFiles | None = None
        self.out, self.resume, self.command = spec.out, spec.resume, spec.command
        self.on_cluster = spec.address != "none"

    def requested_model(self) -> dict[str, Any]:
        return describe_request(self._spec.task.model)

    def given(self) -> dict[str, Any]:
        task = self._spec.task
        return {
            "job": self.name,
            "data": shown_inputs(task.data),
            "training": {name: value for name, value in asdict(task.config).items() if name != "micro_rows"},
            "validation": shown_inputs(task.validation),
            "validation_tokens": task.validation_tokens,
        }

    def check_inputs(self, console: Console) -> None:
        self._found = find_inputs((*self._spec.task.data, *self._spec.task.validation), console)

    def open(self, tell: Tell) -> AbstractContextManager[Training]:
        return open_training(self._spec, tell)

    def is_resumed(self, folder: JobFolder) -> bool:  # noqa: ARG002
        return bool(checkpoints(self.out / CHECKPOINT_FOLDER))

    def run(self, context: JobContext[Training]) -> dict[str, Any]:
        settings = {**self.given()["training"], **context.model.settings, "model": context.model.name}
        run = TrackedRun(self.out, self.name, context.job_id, settings)
        with tracked(self._spec.track, run, context.tell) as tracking:
            return self._run(context, CurveFiles(self.out, PERPLEXITIES, tracking))

    def _run(self, context: JobContext[Training], curves: CurveFiles) -> dict[str, Any]:
        spec, model, training = self._spec, context.model, context.worker
        config = spec.task.config
        saved = checkpoints(self.out / CHECKPOINT_FOLDER)
        first = training.load(saved[-1].absolute()) if saved else 0
        curves.begin(first)
        context.tell(f"{model.name}: {model.num_parameters:,} parameters, steps {first} to {config.steps}")
        context.observer.planned("steps", config.steps, first)
        if first == 0:
            _validate(training, curves, 0, context.tell)
        _train(spec, context, curves, first)
        training.export((self.out / MODEL_FOLDER).absolute(), model.settings["trained_steps"] + config.steps)
        curves.draw()
        assert self._found is not None, "inputs are checked before workers are opened"
        return {
            "longmem_version": longmem.__version__,
            "command": spec.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training": asdict(config),
            "settings": model.settings,
            "workers": spec.workers,
            "validation": curves.validations(),
            "left_out": self._found.left_out.as_dict(),
        }


def _train(job: TrainingJob, context: JobContext[Training], curves: CurveFiles, first: int) -> None:
    """Train from step `first` to the last and save a checkpoint; after Ctrl-C, finish the step and save one too."""
    training, steps, step = context.worker, job.task.config.steps, first
    with held_interrupts() as is_interrupted:
        while step < steps:
            start = perf_counter()
            result = training.step()
            step = result.step
            curves.add_step(result, perf_counter() - start)
            show_step(context.observer, result, perf_counter() - start)
            if step % job.validate_every == 0 or step == steps:
                _validate(training, curves, step, context.tell)
            if is_interrupted() or step % job.checkpoint_every == 0 or step == steps:
                _save(job, training)
            if is_interrupted():
                raise KeyboardInterrupt


def _save(job: TrainingJob, training: Training) -> None:
    training.save((job.out / CHECKPOINT_FOLDER).absolute(), training.row_states())


def _validate(training: Training, curves: CurveFiles, step: int, tell: Tell) -> None:
    result = training.validate()
    if result is None:
        return
    curves.add_validation(step, {name: exp(getattr(result, name)) for name in PERPLEXITIES})
    curves.draw()
    tell(
        f"step {step}: validation perplexity {exp(result.with_memory):.2f} with memory, "
        f"{exp(result.without_memory):.2f} without, {exp(result.backbone):.2f} backbone alone "
        f"({signed(exp(result.with_memory - result.backbone) - 1, '+.1%')})"
    )


def show_step(observer: JobObserver, result: StepResult, seconds: float) -> None:
    """Report one step to the display and the status."""
    observer.detail(f"loss {result.loss:.4f} · {result.tokens / seconds:,.0f} tokens/s")
    observer.advanced()
