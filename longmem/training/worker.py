# SPDX-License-Identifier: Apache-2.0
"""One training worker: model, documents and trainer, opened from a serialisable description."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from longmem.errors import ConfigError, DocumentError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelDescription, ModelSource, describe
from longmem.text.documents import (
    DocumentInput,
    UnreadableDocument,
    find_documents,
    read_documents,
    shown_inputs,
)
from longmem.training.calibration import calibrate_on
from longmem.training.checkpoint import load_checkpoint, save_checkpoint
from longmem.training.config import TrainingConfig
from longmem.training.row_stream import Sequences
from longmem.training.trainer import StepResult, Trainer
from longmem.training.validation import Validation, validate


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """Description of a training run that every worker receives."""

    model: ModelSource
    """Backbone (a new SideNet) or LongMem folder (its SideNet is trained further)."""
    data: tuple[DocumentInput, ...]
    """Training documents: files, folders, URIs, or a dataset."""
    validation: tuple[DocumentInput, ...]
    """Validation documents; empty for no validation."""
    validation_tokens: int
    """Tokens read of each validation document, from its start."""
    config: TrainingConfig
    threads: int


class TrainingWorker:
    """Worker that reads some of the run's rows. All workers hold equal weights after every step.

    Raises DocumentError for unreadable or missing documents, ModelError, ConfigError.
    """

    def __init__(self, task: TrainingTask, rows: Sequence[int], reduce: Callable[[Tensor], None] | None = None) -> None:
        torch.set_num_threads(task.threads)
        documents = read_texts(task.data, "training")
        validation = read_texts(task.validation, "validation") if task.validation else []
        self.model = task.model.open()
        self._validation = [self.model.tokenizer.sequence(text)[: task.validation_tokens + 1] for text in validation]
        sequences = tokenised_when_needed(self.model, documents)
        if self.model.config.trained_steps == 0:
            calibrate_on(self.model, sequences)
        self._rows = list(rows)
        self.trainer = Trainer(self.model, sequences, task.config, self._rows, reduce)

    def describe(self) -> ModelDescription:
        return describe(self.model)

    def step(self) -> StepResult:
        return self.trainer.step()

    def validate(self) -> Validation | None:
        """Return the validation losses, or None without validation documents."""
        return validate(self.model, self._validation) if self._validation else None

    def row_states(self) -> list[dict[str, int]]:
        return [row.state() for row in self.trainer.rows]

    def save(self, folder: Path, row_states: list[dict[str, int]]) -> Path:
        """Write a checkpoint with the states of all workers' rows."""
        return save_checkpoint(folder, self.trainer, row_states)

    def load(self, checkpoint: Path) -> int:
        """Resume from a checkpoint and return its step."""
        load_checkpoint(checkpoint, self.trainer, self._rows)
        return self.trainer.step_count

    def export(self, folder: Path, trained_steps: int) -> None:
        """Write the trained model with weights rounded to bfloat16: half the size, and equal bytes for every reader."""
        save_trained(self.model, folder, trained_steps)


def save_trained(model: LongMem, folder: Path, trained_steps: int) -> None:
    """Save `model` with its SideNet rounded to bfloat16 values; the model itself keeps the unrounded ones for
    training."""
    weights = {name: tensor.clone() for name, tensor in model.sidenet.state_dict().items()}
    model.sidenet.load_state_dict({name: tensor.bfloat16() for name, tensor in weights.items()})
    model.with_trained_steps(trained_steps).save_pretrained(folder)
    model.sidenet.load_state_dict(weights)


def read_texts(inputs: Sequence[DocumentInput], role: str) -> list[str]:
    """Return all documents' texts, in order. Raises DocumentError, naming the first that cannot be read."""
    if not inputs:
        raise ConfigError(f"no {role} data: give files or folders of text, or a dataset")
    texts = []
    for document in read_documents(find_documents(inputs)):
        if isinstance(document, UnreadableDocument):
            raise DocumentError(f"{role} data: {document.error}")
        texts.append(document.text)
    if not texts:
        raise DocumentError(f"no {role} documents in {', '.join(shown_inputs(inputs))}: expected at least one")
    return texts


def tokenised_when_needed(model: LongMem, texts: list[str]) -> Sequences:
    """Return documents that are tokenised when a row reaches them.

    Tokenising one document costs half a second; that of a whole library would cost minutes before the first step.
    """

    def tokenise(text: str) -> Callable[[], Int32[np.ndarray, " tokens"]]:
        return lambda: model.tokenizer.sequence(text)

    return [tokenise(text) for text in texts]
