"""Fitting a copy head: read documents once, fit, say what it was worth, write the model.

out/job.json · fit.json · model/
"""

import time
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
from longmem.model.source import ModelSource, describe
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
from pipelines.job.executors import use_threads
from pipelines.job.folder import JobFolder
from pipelines.job.inputs import find_inputs
from pipelines.job.requested_model import asked_model

MODEL_FOLDER = "model"
RESULTS = "fit.json"


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """What the command line says. Raises ConfigError."""

    model: ModelSource
    data: tuple[str, ...]
    validation: tuple[str, ...]
    document_tokens: int
    """Of each document, from its start."""
    config: CopyFitConfig
    out: Path
    threads: int | None
    resume: bool = False
    """Leave a finished job as it is, and begin an interrupted one from the start."""
    command: str = ""

    def __post_init__(self) -> None:
        if self.document_tokens < 1:
            raise ConfigError(f"--document-tokens must be at least 1, got {self.document_tokens}")


def run_fit(job: FitJob, console: Console) -> dict[str, Any]:
    """Fit and write the output folder; returns what fit.json holds: a FinishedSummary where the job had finished
    before, and nothing was changed.

    Raises ConfigError, DocumentError, ModelError, NumericError, OutputError.
    """
    began = time.monotonic()
    with JobFolder(job.out, job.resume) as folder:
        asked = {**_given(job), "model": asked_model(job.model)}
        if (finished := folder.finished(RESULTS, asked)) is not None:
            return finished
        found = find_inputs((*job.data, *job.validation), console)
        if job.threads is not None:
            use_threads(job.threads)
        texts = read_texts(job.data, "training")
        judges = read_texts(job.validation, "validation") if job.validation else []
        model = job.model.open()
        copy_head_of(model)
        # before calibration, which depends on the data and not only on the model
        described = describe(model)
        if model.config.trained_steps == 0:
            calibrate_on(model, tokenised_when_needed(model, texts))
        folder.claim({**_given(job), "model": asdict(described)}, asked)
        if (finished := folder.finished(RESULTS)) is not None:
            return finished
        readings = _read(model, texts, job.document_tokens, "learn from", console)
        judged = _read(model, judges, job.document_tokens, "judge by", console) if judges else None
        perplexities: list[dict[str, Any]] = []

        def after_epoch(epoch: int, loss: float) -> None:
            validation = None if judged is None else exp(mean_nats(model, judged))
            row = {"epoch": epoch, "training": exp(loss), "validation": validation}
            perplexities.append(row)
            console.print(_line(row), highlight=False)

        after_epoch(0, mean_nats(model, readings))
        steps = fit_copy_head(model, readings, job.config, after_epoch)
        save_trained(model, job.out / MODEL_FOLDER, model.config.trained_steps + steps)
        summary = {
            "longmem_version": longmem.__version__,
            "command": job.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "elapsed_s": round(time.monotonic() - began, 1),
            "config": asdict(job.config),
            "settings": vars(model.config),
            "documents": len(texts),
            "tokens": readings.num_tokens,
            "steps": steps,
            "perplexity": perplexities,
            "left_out": found.left_out.as_dict(),
        }
        folder.write_json(RESULTS, summary)
    return summary


def _given(job: FitJob) -> dict[str, Any]:
    """The part of a job's identity that the command gives."""
    return {
        "job": "fit",
        "data": list(job.data),
        "validation": list(job.validation),
        "document_tokens": job.document_tokens,
        "config": asdict(job.config),
    }


def _read(model: LongMem, texts: list[str], document_tokens: int, role: str, console: Console) -> Readings:
    sequences: list[Int32[np.ndarray, " _"]] = [model.tokenizer.sequence(t)[: document_tokens + 1] for t in texts]
    with console.status(f"reading {len(texts)} documents to {role}"):
        began = time.monotonic()
        readings = read_documents_once(model, sequences)
    console.print(
        f"read {len(texts)} documents to {role}: {readings.num_tokens:,} tokens with a memory, "
        f"{time.monotonic() - began:.0f} s",
        highlight=False,
    )
    return readings


def _line(row: dict[str, Any]) -> str:
    parts = [f"{name} {row[name]:.3f}" for name in ("training", "validation") if row[name] is not None]
    return f"epoch {row['epoch']}: perplexity " + ", ".join(parts)
