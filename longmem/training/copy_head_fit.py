# SPDX-License-Identifier: Apache-2.0
"""Fits the copy head alone, on memory readings that are computed once.

Retrieval does not depend on the copy head. So with the rest of the model fixed, every document is read once and its
candidates are kept. The head then trains on tokens drawn at random from all documents. Neighbouring gradients are less
correlated than where rows stream documents, and a step costs a hundredth of one through the whole model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor, nn

from longmem.errors import ConfigError, DocumentError, NumericError
from longmem.memory.context import LocalMemory
from longmem.model.longmem import LongMem
from longmem.sidenet.copies import Candidates
from longmem.sidenet.copy_head import CopyCandidates, CopyHead
from longmem.text.segments import cut_segments
from longmem.training.row_stream import TRAINING_NAMESPACE
from longmem.training.trainer import encode_rows, stacked_tokens
from longmem.types import DocumentKey

KEY = DocumentKey(TRAINING_NAMESPACE, "reading")
VALIDATION_TOKENS = 8192
"""Tokens of one forward of the head without gradients."""


@dataclass(frozen=True, kw_only=True)
class CopyFitConfig:
    """Hyperparameters of the copy-head fit.

    Raises ConfigError for a value that cannot work, naming the field and the expected range.
    """

    epochs: int = 3
    """Number of passes over all tokens."""
    batch_tokens: int = 2048
    learning_rate: float = 5e-4
    """Peak learning rate of matrices."""
    vector_factor: float = 30.0
    """Factor on the learning rate of the few vectors and scalars, which move far."""
    warmup_steps: int = 20
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("warmup_steps", "seed"):
                if not isinstance(value, int) or value < 0:
                    raise ConfigError(f"{field.name} must be a whole number of at least 0, got {value!r}")
            elif not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{field.name} must be a positive number, got {value!r}")


@dataclass(frozen=True)
class Readings:
    """Candidates that the tokens of some documents found, about 4 KiB each. Tokens without a memory are only
    counted."""

    found: CopyCandidates | None
    """Candidates of the copy head; None where no token read a memory."""
    hidden: Float32[Tensor, "tokens head_input"]
    targets: Int64[Tensor, " tokens"]
    logprobs: Float32[Tensor, " tokens"]
    """Log-probabilities of the targets without copies."""
    unread_nats: float
    unread_tokens: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens that read a memory."""
        return len(self.targets)


@torch.no_grad()
def read_documents_once(model: LongMem, sequences: Sequence[Int32[np.ndarray, " _"]]) -> Readings:
    """Read whole documents in order, each with its own memory.

    Raises ConfigError for a model without a copy head, DocumentError when no document is longer than a segment.
    """
    # joined per document: small long-lived tensors between large short-lived ones would keep three times their bytes
    by_document = (list(_read_document(model, sequence)) for sequence in sequences)
    read = [_join(segments) for segments in by_document if segments]
    if not sum(readings.num_tokens for readings in read):
        raise DocumentError(
            f"no document is longer than a segment of {model.config.segment_tokens} tokens, so none reads a memory"
        )
    return _join(read)


def _read_document(model: LongMem, sequence: Int32[np.ndarray, " tokens"]) -> Iterator[Readings]:
    """Yield the readings of one document, segment by segment."""
    head = copy_head_of(model)
    memory = LocalMemory(model)
    for segment in cut_segments(KEY, sequence, model.config.segment_tokens):
        if not len(segment.targets):
            continue
        output = encode_rows(model, [segment])
        view, targets = memory.view(segment.index), torch.from_numpy(np.array(segment.targets)).long()
        given = model.sidenet_input(stacked_tokens([segment]), output, [view])
        read = model.sidenet(given, model.search)
        hidden = read.hidden[0, : len(targets)]
        logprobs = model.backbone.target_logprobs(hidden, targets)
        reading = read.readings[0]
        if reading is None or view is None:
            yield Readings(
                None, hidden[:0].float(), targets[:0], logprobs[:0], -float(logprobs.double().sum()), len(targets)
            )
        else:
            found = head.find(reading, view, len(segment.tokens), given.tokens[0]).rows(slice(len(targets)))
            yield Readings(found, hidden.float(), targets, logprobs, 0.0, 0)
        memory.extend(segment, output.keys[0], output.values[0])


def fit_copy_head(
    model: LongMem, readings: Readings, config: CopyFitConfig, after_epoch: Callable[[int, float], None]
) -> int:
    """Fit in place and return the number of steps. `after_epoch` gets each epoch, counted from 1, and its loss in nats.

    Raises ConfigError for a model without a copy head, NumericError when a loss is not finite.
    """
    head = copy_head_of(model).float().requires_grad_(True)
    random = torch.Generator().manual_seed(config.seed)
    groups = [
        {"params": [p for p in head.parameters() if p.ndim > 1], "lr": config.learning_rate},
        {"params": [p for p in head.parameters() if p.ndim <= 1], "lr": config.learning_rate * config.vector_factor},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    steps_of_epoch = -(-readings.num_tokens // config.batch_tokens)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _rate(step, config.warmup_steps, config.epochs * steps_of_epoch)
    )
    for epoch in range(config.epochs):
        nats = 0.0
        for rows in torch.randperm(readings.num_tokens, generator=random).split(config.batch_tokens):
            loss = -_mixed(head, readings, rows).mean()
            loss.backward()
            norm, mean = float(nn.utils.clip_grad_norm_(head.parameters(), config.clip_norm)), float(loss.detach())
            if not (math.isfinite(mean) and math.isfinite(norm)):
                raise NumericError(
                    f"epoch {epoch + 1}: expected a finite loss and gradient, got {mean:g} and {norm:g}; lower "
                    "learning_rate"
                )
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            nats += mean * len(rows)
        after_epoch(epoch + 1, nats / readings.num_tokens)
    return config.epochs * steps_of_epoch


@torch.no_grad()
def mean_nats(model: LongMem, readings: Readings) -> float:
    """Return nats per token with copies, over all tokens, including those without a memory."""
    head = copy_head_of(model)
    nats = readings.unread_nats
    for rows in torch.arange(readings.num_tokens).split(VALIDATION_TOKENS):
        nats -= float(_mixed(head, readings, rows).double().sum())
    return nats / (readings.num_tokens + readings.unread_tokens)


def copy_head_of(model: LongMem) -> CopyHead:
    """Return the model's copy head. Raises ConfigError for a model without one."""
    if model.sidenet.copy_head is None:
        raise ConfigError("the model has no copy head to fit: it was made with copy_head=false")
    return model.sidenet.copy_head


def _mixed(head: CopyHead, readings: Readings, rows: Int64[Tensor, " rows"]) -> Float32[Tensor, " rows"]:
    assert readings.found is not None, "there is nothing to learn from"
    copies = head.weigh(readings.found.rows(rows), readings.hidden[rows])
    return copies.mix_targets(readings.logprobs[rows], readings.targets[rows])


def _rate(step: int, warmup_steps: int, steps: int) -> float:
    """Return the factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))))


def _join(parts: Sequence[Readings]) -> Readings:
    founds = [part.found for part in parts if part.found is not None]
    return Readings(
        found=_join_found(founds) if founds else None,
        hidden=torch.cat([part.hidden for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
        unread_nats=sum(part.unread_nats for part in parts),
        unread_tokens=sum(part.unread_tokens for part in parts),
    )


def _join_found(founds: Sequence[CopyCandidates]) -> CopyCandidates:
    def join(candidates: Sequence[Candidates]) -> Candidates:
        names = [field.name for field in fields(Candidates)]
        return Candidates(**{name: torch.cat([getattr(part, name) for part in candidates]) for name in names})

    repeated = [found.repeated for found in founds if found.repeated is not None]
    return CopyCandidates(
        join([found.retrieved for found in founds]),
        torch.cat([found.products for found in founds]),
        join(repeated) if repeated else None,
    )
