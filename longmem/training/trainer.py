# SPDX-License-Identifier: Apache-2.0
"""Memory-augmented adaptation training (paper, section 3.4): rows stream documents, the SideNet learns to read.

One step reads one segment of every row. A row's memory holds exactly the segments of the same document before it
(global causality at the level of segments) and is emptied when a document ends. The backbone is frozen; gradients
reach the SideNet's layers, scale, gate, reader and copy head, never what is stored.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor, nn

from longmem.backbone.backbone import BackboneOutput
from longmem.errors import ConfigError, NumericError
from longmem.memory.context import LocalMemory
from longmem.memory.sliding_window import SlidingWindow
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.training.config import TrainingConfig
from longmem.training.row_stream import RowStream, Sequences
from longmem.types import Segment


@dataclass(frozen=True)
class StepResult:
    """Result of one step, over the rows of all workers."""

    step: int
    """Number of the step, counted from 1."""
    nats: float
    """Sum of the losses of `tokens` tokens."""
    tokens: int
    gradient_norm: float
    """Norm of all gradients together, before clipping."""
    learning_rate: float

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return self.nats / self.tokens


class TrainingRow:
    """Row of the batch: a stream of documents, and the memory of the present one."""

    def __init__(self, model: LongMem, stream: RowStream) -> None:
        self._model = model
        self._stream = stream
        self.memory = LocalMemory(model)

    def next(self) -> tuple[Segment, MemoryView | None]:
        """Return the next segment and what it may read. A new document begins with an empty memory."""
        segment = self._stream.next()
        if segment.index == 0:
            self.memory = LocalMemory(self._model)
        return segment, self.memory.view(segment.index)

    def state(self) -> dict[str, int]:
        return self._stream.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go to a saved position, and encode the segments again that its memory held.

        Costs one backbone forward per segment of the window. Nothing of a memory is saved in a checkpoint.
        """
        past = self._stream.restore(state)
        self.memory = LocalMemory(self._model)
        for index in SlidingWindow.of(self._model.config).segments_before(len(past)):
            output = encode_rows(self._model, [past[index]])
            self.memory.extend(past[index], output.keys[0], output.values[0])


class Trainer:
    """Optimiser, rows and the training step of one worker."""

    def __init__(
        self,
        model: LongMem,
        documents: Sequences,
        config: TrainingConfig,
        rows: Sequence[int] | None = None,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Turn the SideNet's weights into float32 master weights, whatever the backbone computes in.

        Raises ConfigError for a model without a SideNet.

        Args:
            rows: This worker's share of `config.rows`; all of them by default.
            reduce: Sums a tensor over all workers in place, so that every worker applies the same gradient.
        """
        if model.config.reads_all_layers:
            raise ConfigError(
                "a model with memory_layers=all has no SideNet to train: fit its copy head with `longmem fit`, or "
                "train with memory_layers=one"
            )
        self.model = model
        self.config = config
        self.step_count = 0
        model.sidenet.float()
        self._autocast = model.backbone.dtype == torch.bfloat16
        self._reduce = reduce
        own = range(config.rows) if rows is None else rows
        self.rows = [
            TrainingRow(model, RowStream(documents, row, config.rows, model.config.segment_tokens, config.seed))
            for row in own
        ]
        self.optimiser = torch.optim.AdamW(parameter_groups(model.sidenet, config), betas=(0.9, 0.98), eps=1e-8)
        self._peaks = [group["lr"] for group in self.optimiser.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def step(self) -> StepResult:
        """Read one segment of every row and learn from it.

        Raises NumericError when loss or gradient is not finite; no weight is changed then.
        """
        model, config = self.model, self.config
        rate = config.rate(self.step_count)
        for group, peak in zip(self.optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rate
        tokens = config.rows * model.config.segment_tokens
        nats = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(self.rows), config.micro_rows):
            nats += self._learn(self.rows[first : first + config.micro_rows], tokens)
        for parameter in self.parameters:
            # Adam also updates parameters that got no gradient, equally on one worker, on several and after a resume
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._reduce is not None:
            self._reduce(nats)
            self._reduce_gradients(self._reduce)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, config.clip_norm))
        if not (math.isfinite(float(nats)) and math.isfinite(norm)):
            raise NumericError(
                f"step {self.step_count + 1}: expected a finite loss and gradient, got {float(nats) / tokens:g} and "
                f"{norm:g}; lower learning_rate, or start again from the last checkpoint"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step_count += 1
        return StepResult(self.step_count, float(nats), tokens, norm, self._peaks[0] * rate)

    def _learn(self, rows: list[TrainingRow], tokens: int) -> float:
        model = self.model
        # dropout stays off, as in the frozen backbone: a step depends on weights and text only, on every worker
        model.sidenet.eval()
        segments, views = zip(*(row.next() for row in rows), strict=True)
        output = encode_rows(model, segments)
        with torch.autocast(model.backbone.device.type, torch.bfloat16, enabled=self._autocast):
            given = model.sidenet_input(stacked_tokens(segments), output, views)
            read = model.sidenet(given, model.search)
            logprobs = [
                model.target_logprobs(read, row, torch.from_numpy(np.array(segment.targets)))
                for row, segment in enumerate(segments)
            ]
        loss = -torch.cat(logprobs).sum()
        (loss / tokens).backward()
        for row, segment, keys, values in zip(rows, segments, output.keys, output.values, strict=True):
            row.memory.extend(segment, keys, values)
        return float(loss.detach().double())

    def _reduce_gradients(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum the gradients over all workers, as one vector: one exchange per step."""
        parameters = self.parameters
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()


def encode_rows(model: LongMem, segments: Sequence[Segment]) -> BackboneOutput:
    """Run the backbone over equally long segments, one row each."""
    return model.run_backbone(stacked_tokens(segments))


def stacked_tokens(segments: Sequence[Segment]) -> Int32[Tensor, "rows tokens"]:
    """Return a copy of the tokens of equally long segments, one row each."""
    return torch.from_numpy(np.stack([segment.tokens for segment in segments]))


def parameter_groups(sidenet: nn.Module, config: TrainingConfig) -> list[dict[str, object]]:
    """Return the optimiser's groups of parameters.

    Copied matrices decay and new ones do not; new vectors and numbers learn `vector_factor` times faster.
    """
    copied: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in sidenet.named_parameters():
        is_copied = name.startswith(("layers.", "norm."))
        if not parameter.requires_grad or (is_copied and config.frozen_layers):
            continue
        if is_copied:
            (copied if parameter.ndim > 1 else norms).append(parameter)
        else:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
    rate = config.learning_rate
    return [
        {"params": copied, "lr": rate, "weight_decay": config.weight_decay},
        {"params": [*norms, *matrices], "lr": rate, "weight_decay": 0.0},
        {"params": vectors, "lr": rate * config.vector_factor, "weight_decay": 0.0},
    ]
