"""One training job from its options to its output folder: steps, curves, checkpoints, the trained model.

out/job.json · curve.csv · validation.csv · curves.png · checkpoints/ · model/ · training.json
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape

import longmem
from longmem.errors import ConfigError
from longmem.model.source import ModelDescription
from longmem.text.documents import FoundFiles
from longmem.training.checkpoint import checkpoints
from longmem.training.trainer import StepResult
from longmem.training.validation import Validation
from longmem.training.worker import TrainingTask, TrainingWorker
from pipelines.command.command_line import check_device
from pipelines.command.interrupts import held_interrupts
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.job.requested_model import asked_model
from pipelines.train.curves import CurveFiles

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
RESULTS = "training.json"
PRINT_EVERY_S = 10.0
PERPLEXITIES = {"with_memory": "with memory", "without_memory": "without memory", "backbone": "backbone alone"}
"""Columns of `validation.csv`, named as in `Validation`, and what the picture calls them."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What the command line says, checked. Raises ConfigError."""

    task: TrainingTask
    out: Path
    workers: int = 1
    address: str = "none"
    """`none` trains in this process; anything else is a Ray cluster (see `actors.cluster.connect`)."""
    validate_every: int = 200
    checkpoint_every: int = 200
    resume: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("workers", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        check_device(self.task.model.device)
        if self.address == "none" and self.workers > 1:
            raise ConfigError(f"--workers {self.workers} needs Ray; add --address local")


class Training(Protocol):
    """What a job asks of one worker, or of many that act as one."""

    def describe(self) -> ModelDescription: ...
    def step(self) -> StepResult: ...
    def validate(self) -> Validation | None: ...
    def row_states(self) -> list[dict[str, int]]: ...
    def save(self, folder: Path, row_states: list[dict[str, int]]) -> Path: ...
    def load(self, checkpoint: Path) -> int: ...
    def export(self, folder: Path, trained_steps: int) -> None: ...


@contextmanager
def open_training(job: TrainingJob, tell: Callable[[str], None]) -> Iterator[Training]:
    """Workers here or on Ray, which is imported only for that. `tell` gets what the user should know meanwhile."""
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
    """Train (or go on training); returns what `training.json` holds: a FinishedSummary where there was nothing left to
    do, and nothing was changed. Ctrl-C leaves a checkpoint.

    Raises ConfigError, DocumentError, ModelError, NumericError, OutputError, ClusterError.
    """
    with JobFolder(job.out, job.resume) as folder:
        asked = {**_given(job), "model": asked_model(job.task.model)}
        if (finished := folder.finished(RESULTS, asked)) is not None:
            return finished
        found = find_inputs((*job.task.data, *job.task.validation), console)

        def tell(text: str) -> None:
            console.print(escape(text), soft_wrap=True)

        with open_training(job, tell) as training:
            return _run(job, folder, asked, training, found, console)


def _run(
    job: TrainingJob,
    folder: JobFolder,
    asked: dict[str, Any],
    training: Training,
    found: FoundFiles,
    console: Console,
) -> dict[str, Any]:
    config = job.task.config
    model = training.describe()
    folder.claim(identity(job, model), asked)
    if (finished := folder.finished(RESULTS)) is not None:
        return finished
    curves = CurveFiles(job.out, PERPLEXITIES)
    saved = checkpoints(job.out / CHECKPOINT_FOLDER)
    first = training.load(saved[-1].absolute()) if saved else 0
    curves.begin(first)
    console.print(f"{model.name}: {model.num_parameters:,} parameters, steps {first} to {config.steps}")
    if first == 0:
        _validate(training, curves, 0, console)
    _train(job, training, curves, first, console)
    training.export((job.out / MODEL_FOLDER).absolute(), model.settings["trained_steps"] + config.steps)
    curves.draw()
    summary = {
        "longmem_version": longmem.__version__,
        "command": job.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": asdict(config),
        "settings": model.settings,
        "workers": job.workers,
        "validation": curves.validations(),
        "left_out": found.left_out.as_dict(),
    }
    folder.write_json(RESULTS, summary)
    return summary


def _train(job: TrainingJob, training: Training, curves: CurveFiles, first: int, console: Console) -> None:
    """From step `first` to the last; there is a checkpoint then, also after Ctrl-C, which waits for the step's end."""
    steps, step, printed = job.task.config.steps, first, perf_counter()
    with held_interrupts() as is_interrupted:
        while step < steps:
            start = perf_counter()
            result = training.step()
            step = result.step
            curves.add_step(result, perf_counter() - start)
            if perf_counter() - printed > PRINT_EVERY_S:
                printed = perf_counter()
                print_step(console, result, steps, perf_counter() - start)
            if step % job.validate_every == 0 or step == steps:
                _validate(training, curves, step, console)
            if is_interrupted() or step % job.checkpoint_every == 0 or step == steps:
                _save(job, training)
            if is_interrupted():
                raise KeyboardInterrupt


def identity(job: TrainingJob, model: ModelDescription) -> dict[str, Any]:
    """What decides the curve. Where it runs and with how many workers does not."""
    return {
        **_given(job),
        "model": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        "settings": model.settings,
    }


def _given(job: TrainingJob) -> dict[str, Any]:
    """The part of a job's identity that the command gives."""
    task = job.task
    return {
        "job": "train",
        "data": list(task.data),
        "training": {name: value for name, value in asdict(task.config).items() if name != "micro_rows"},
        "validation": list(task.validation),
        "validation_tokens": task.validation_tokens,
    }


def _save(job: TrainingJob, training: Training) -> None:
    training.save((job.out / CHECKPOINT_FOLDER).absolute(), training.row_states())


def _validate(training: Training, curves: CurveFiles, step: int, console: Console) -> None:
    result = training.validate()
    if result is None:
        return
    curves.add_validation(step, {name: exp(getattr(result, name)) for name in PERPLEXITIES})
    curves.draw()
    console.print(
        f"step {step}: validation perplexity {exp(result.with_memory):.2f} with memory, "
        f"{exp(result.without_memory):.2f} without, {exp(result.backbone):.2f} backbone alone "
        f"({exp(result.with_memory - result.backbone) - 1:+.1%})"
    )


def print_step(console: Console, result: StepResult, steps: int, seconds: float) -> None:
    """One line of how far training is, judged by the last step's seconds."""
    left = (steps - result.step) * seconds
    console.print(
        f"step {result.step} of {steps} · loss {result.loss:.4f} · {result.tokens / seconds:,.0f} tokens/s · "
        f"{left / 60:,.0f} min left",
        highlight=False,
    )
