# SPDX-License-Identifier: Apache-2.0
"""Training of a MemorizingTransformer on a stream of books; the memory keeps keys in the form of their training step.

Each row of the batch reads its own book, segment after segment. Stored keys and values are not recomputed. So in a long
book the oldest are the stalest, as in the paper (section 3.3). At evaluation the weights are fixed, so no key is stale.
"""

import collections.abc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.baselines.base import Sequence
from benchmarks.baselines.memorizing_transformer import MemorizingTransformer
from benchmarks.baselines.token_memory import TokenMemory
from longmem.errors import DocumentError

Books = collections.abc.Sequence[Callable[[], Sequence]]
"""Functions that each return the sequence of one book, loaded on call."""


@dataclass(frozen=True)
class TrainingSettings:
    """Duration, learning rates and batch shape of the training."""

    steps: int = 300
    rows: int = 4
    """Number of books read in parallel."""
    segment_tokens: int = 512
    book_tokens: int = 16_384
    """Tokens read from the start of each book, so that more books are seen; also the capacity of the memory."""
    learning_rate: float = 1e-4
    memory_learning_rate: float = 1e-2
    """Learning rate of gate and temperature, whose initial values are a guess."""
    warmup_steps: int = 20
    seed: int = 0


def train(
    model: MemorizingTransformer,
    books: Books,
    settings: TrainingSettings,
    report: Callable[[int, float], None] = lambda _step, _loss: None,
) -> None:
    """Train with AdamW on next-token cross-entropy; call `report(step, nats per token)` after every step.

    Weights are float32, autocast to bfloat16. The model's backbone changes: never pass one that is used elsewhere.
    """
    model.train().requires_grad_(True)
    own = [model.gate, model.temperature]
    optimiser = AdamW(
        [
            {"params": list(model.model.parameters()), "lr": settings.learning_rate},
            {"params": own, "lr": settings.memory_learning_rate, "weight_decay": 0.0},
        ],
        weight_decay=0.01,
    )
    schedule = LambdaLR(optimiser, lambda step: _rate(step, settings))
    random = np.random.default_rng(settings.seed)
    rows = [_segments(books, settings, random) for _ in range(settings.rows)]
    device = model.backbone.device
    for step in range(settings.steps):
        parts, memories = zip(*(next(row) for row in rows), strict=True)
        tokens = torch.from_numpy(np.stack(parts)).to(device, torch.long)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = model(tokens[:, :-1], list(memories))
            logits = model.backbone.logits(hidden.flatten(0, 1))
        loss = cross_entropy(logits, tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        report(step + 1, float(loss.detach()))
    model.eval().requires_grad_(False)


def save(model: MemorizingTransformer, path: Path, settings: TrainingSettings) -> None:
    """Save every weight once (a tied head is its embedding), with the settings of the training."""
    description = {"layer": model.layer, "top_k": model.top_k, **asdict(settings)}
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, path, metadata={name: str(value) for name, value in description.items()})


def _segments(
    books: Books, settings: TrainingSettings, random: np.random.Generator
) -> Iterator[tuple[Int32[np.ndarray, " tokens"], TokenMemory]]:
    """Yield whole segments with the token after them, of one book after another, and the book's memory."""
    while True:
        sequence: Any = books[int(random.integers(len(books)))]()[: settings.book_tokens + 1]
        if len(sequence) <= settings.segment_tokens:
            raise DocumentError(f"training books must be longer than a segment of {settings.segment_tokens} tokens")
        memory = TokenMemory(settings.book_tokens)
        for start in range(0, len(sequence) - settings.segment_tokens, settings.segment_tokens):
            yield sequence[start : start + settings.segment_tokens + 1], memory


def _rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning-rate factor: linear warm-up, then linear decay to zero."""
    left = (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)
    return min((step + 1) / settings.warmup_steps, left)
