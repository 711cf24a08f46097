# SPDX-License-Identifier: Apache-2.0
"""Copy-head fitting: read documents once, fit, validate, write the model.

out/job.json · fit.json · model/
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from rich.console import Console

import longmem
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, ModelSource, describe
from longmem.text.documents import DocumentInput, FoundFiles, shown_inputs
from longmem.training.calibration import calibrate_on
from longmem.training.copy_head_fit import (
    CopyFitConfig,
    Readings,
    copy_head_of,
    fit_copy_head,
    mean_nats,
    read_documents_once,
)
from longmem.training.worker import read_texts, save_trained, tokenised_when_needed
from longmem.wording import counted
from pipelines.command.choices import TrackerName
from pipelines.job.executors import use_threads
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.job.requested_model import describe_request
from pipelines.job.runner import run_to_end
from pipelines.job.spec import AbstractJob, JobContext, Tell
from pipelines.tracking.tracker import TrackedRun, Tracking, tracked

MODEL_FOLDER = "model"
RESULTS = "fit.json"


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """Validated options of the job. Raises ConfigError."""

    model: ModelSource
    data: tuple[DocumentInput, ...]
    validation: tuple[DocumentInput, ...]
    document_tokens: int
    """Tokens that are read of each document, from its start."""
    config: CopyFitConfig
    out: Path
    threads: int | None
    resume: bool = False
    """True to leave a finished job unchanged, and to restart an interrupted one from the beginning."""
    track: TrackerName | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.document_tokens < 1:
            raise ConfigError(f"--document-tokens must be at least 1, got {self.document_tokens}")


def run_fit(job: FitJob, console: Console) -> dict[str, Any]:
    """Fit and return the content of fit.json; see `pipelines.job.runner.run`."""
    return run_to_end(Fit(job), console)


@dataclass(frozen=True)
class FitWorker:
    """Model in this process, with training and validation texts."""

    model: LongMem
    texts: list[str]
    judges: list[str]

    def describe(self) -> ModelDescription:
        return describe(self.model)


class Fit(AbstractJob[FitWorker]):
    """Fit of a copy head, which weights the copied distribution against the model's own."""

    name = "fit"
    results = RESULTS
    on_cluster = False

    def __init__(self, spec: FitJob) -> None:
        self._spec = spec
        self._found: FoundFiles | None = None
        self.out, self.resume, self.command = spec.out, spec.resume, spec.command

    def requested_model(self) -> dict[str, Any]:
        return describe_request(self._spec.model)

    def given(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "job": self.name,
            "data": shown_inputs(spec.data),
            "validation": shown_inputs(spec.validation),
            "document_tokens": spec.document_tokens,
            "config": asdict(spec.config),
        }

    def identity(self, model: ModelDescription | None) -> dict[str, Any]:
        assert model is not None, "a fit begins with a model"
        return {**self.given(), "model": asdict(model)}

    def check_inputs(self, console: Console) -> None:
        self._found = find_inputs((*self._spec.data, *self._spec.validation), console)

    def open(self, tell: Tell) -> AbstractContextManager[FitWorker]:  # noqa: ARG002
        spec = self._spec
        if spec.threads is not None:
            use_threads(spec.threads)
        texts = read_texts(spec.data, "training")
        judges = read_texts(spec.validation, "validation") if spec.validation else []
        model = spec.model.open()
        copy_head_of(model)
        return nullcontext(FitWorker(model, texts, judges))

    def is_resumed(self, folder: JobFolder) -> bool:  # noqa: ARG002 - it begins from the start
        return False

    def run(self, context: JobContext[FitWorker]) -> dict[str, Any]:
        settings = {**asdict(self._spec.config), **context.model.settings, "model": context.model.name}
        run = TrackedRun(self.out, self.name, context.job_id, settings)
        with tracked(self._spec.track, run, context.tell) as tracking:
            tracking.begin(0)
            return self._run(context, tracking)

    def _run(self, context: JobContext[FitWorker], tracking: Tracking) -> dict[str, Any]:
        spec, worker, began = self._spec, context.worker, time.monotonic()
        model = worker.model
        if model.config.trained_steps == 0:
            # after the identity is written: it depends on the model, not on the data
            calibrate_on(model, tokenised_when_needed(model, worker.texts))
        context.observer.planned("passes over the data", 1 + bool(worker.judges) + spec.config.epochs)
        readings = _read(model, worker.texts, spec.document_tokens, "learn from", context)
        judged = _read(model, worker.judges, spec.document_tokens, "judge by", context) if worker.judges else None
        perplexities: list[dict[str, Any]] = []

        def after_epoch(epoch: int, loss: float) -> None:
            validation = None if judged is None else exp(mean_nats(model, judged))
            row = {"epoch": epoch, "training": exp(loss), "validation": validation}
            perplexities.append(row)
            figures = {"train/perplexity": exp(loss)}
            tracking.add(epoch, figures if validation is None else {**figures, "valid/perplexity": validation})
            context.tell(_line(row))
            context.observer.advanced(1 if epoch else 0)

        after_epoch(0, mean_nats(model, readings))
        steps = fit_copy_head(model, readings, spec.config, after_epoch)
        save_trained(model, self.out / MODEL_FOLDER, model.config.trained_steps + steps)
        assert self._found is not None, "inputs are checked before a model is opened"
        return {
            "longmem_version": longmem.__version__,
            "command": spec.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "elapsed_s": round(time.monotonic() - began, 1),
            "config": asdict(spec.config),
            "settings": vars(model.config),
            "documents": len(worker.texts),
            "tokens": readings.num_tokens,
            "steps": steps,
            "perplexity": perplexities,
            "left_out": self._found.left_out.as_dict(),
        }


def _read(
    model: LongMem, texts: list[str], document_tokens: int, role: str, context: JobContext[FitWorker]
) -> Readings:
    sequences: list[Int32[np.ndarray, " _"]] = [model.tokenizer.sequence(t)[: document_tokens + 1] for t in texts]
    began = time.monotonic()
    readings = read_documents_once(model, sequences)
    context.tell(
        f"read {counted(len(texts), 'document')} to {role}: {counted(readings.num_tokens, 'token')} with a memory, "
        f"{time.monotonic() - began:.0f} s"
    )
    context.observer.advanced()
    return readings


def _line(row: dict[str, Any]) -> str:
    parts = [f"{name} {row[name]:.3f}" for name in ("training", "validation") if row[name] is not None]
    return f"epoch {row['epoch']}: perplexity " + ", ".join(parts)
