# SPDX-License-Identifier: Apache-2.0
"""Next-token training of a model (float32 weights, bfloat16 autocast, AdamW) and its validation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from longmem.config import Dtype
from longmem.errors import CheckpointError, NumericError
from longmem.pretraining.config import PretrainingConfig
from longmem.pretraining.windows import Windows, repeated
from longmem.training.run_state import read_run_state, restore_moments, write_run_state
from longmem.training.trainer import StepResult

WEIGHTS_FILE = "weights.safetensors"
REPEATED_WINDOWS = 16
"""Number of validation windows whose first half is also evaluated repeated."""


@dataclass(frozen=True)
class PretrainingValidation:
    """Validation losses in nats per token."""

    text: float
    """Loss of the validation windows."""
    repeated: float
    """Loss of the second copy of a repeated half window: low once the model copies."""
    tokens: int
    """Number of tokens of `text`."""


class Pretrainer:
    """Model, optimiser and step count. `config.steps` must be set (see `PretrainingConfig.with_steps`)."""

    def __init__(
        self,
        model: nn.Module,
        windows: Windows,
        config: PretrainingConfig,
        device: str = "cpu",
        dtype: Dtype = "bfloat16",
    ) -> None:
        self.model = model.to(device).train()
        self.config = config
        self.step_count = 0
        self._windows = windows
        self._device = torch.device(device)
        self._autocast = dtype == "bfloat16"
        # named_parameters lists a tied embedding once
        self._parameters = dict(model.named_parameters())
        matrices = [parameter for parameter in self._parameters.values() if parameter.ndim > 1]
        vectors = [parameter for parameter in self._parameters.values() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters.values())

    def step(self) -> StepResult:
        """Train on the next windows. Raises NumericError, without an update, if loss or gradient is not finite."""
        config = self.config
        rate = config.learning_rate * config.rate(self.step_count)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        nats = torch.zeros((), dtype=torch.float64, device=self._device)
        first = self.step_count * config.rows
        for start in range(0, config.rows, config.micro_rows):
            numbers = range(first + start, first + min(start + config.micro_rows, config.rows))
            loss = self._nats([self._windows[number] for number in numbers]).sum()
            (loss / config.batch_tokens).backward()
            nats += loss.detach()
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), config.clip_norm))
        if not (math.isfinite(float(nats)) and math.isfinite(norm)):
            raise NumericError(
                f"step {self.step_count + 1}: expected a finite loss and gradient, got "
                f"{float(nats) / config.batch_tokens:g} and {norm:g}; lower the learning rate in a new job"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step_count += 1
        return StepResult(self.step_count, float(nats), config.batch_tokens, norm, rate)

    @torch.no_grad()
    def validate(self, windows: Windows) -> PretrainingValidation:
        """Return the losses of the validation corpus. The model stays in training mode."""
        self.model.eval()
        size, half = self.config.micro_rows, self.config.window_tokens // 2
        text = second = 0.0
        for start in range(0, len(windows), size):
            rows = [windows.plain(index) for index in range(start, min(start + size, len(windows)))]
            text += float(self._nats(rows).double().sum())
        chosen = sorted({int(index) for index in np.linspace(0, len(windows) - 1, REPEATED_WINDOWS)})
        for start in range(0, len(chosen), size):
            rows = [repeated(windows.plain(index), half) for index in chosen[start : start + size]]
            second += float(self._nats(rows)[:, half:].double().sum())
        self.model.train()
        tokens = len(windows) * self.config.window_tokens
        return PretrainingValidation(
            text=text / tokens, repeated=second / (len(chosen) * (self.config.window_tokens - half)), tokens=tokens
        )

    def save(self, folder: Path) -> Path:
        """Write a checkpoint and delete older ones; return its path. Raises OutputError."""
        weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
        state = {"step": self.step_count}
        return write_run_state(folder, WEIGHTS_FILE, weights, self.optimiser, self._parameters, state)

    @torch.no_grad()
    def load(self, checkpoint: Path) -> int:
        """Restore a checkpoint, and return its step. Raises CheckpointError."""
        saved = read_run_state(checkpoint, WEIGHTS_FILE)
        shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        if {name: weight.shape for name, weight in saved.weights.items()} != shapes:
            raise CheckpointError(f"{checkpoint} is of another model; begin a new job in another folder")
        for name, parameter in self._parameters.items():
            parameter.copy_(saved.weights[name])
        restore_moments(checkpoint, saved, self.optimiser, self._parameters)
        self.step_count = saved.step
        return self.step_count

    def _nats(self, rows: Sequence[Int64[np.ndarray, " tokens"]]) -> Float32[Tensor, "rows targets"]:
        """Return the loss of every target, in nats, of windows of equal length."""
        batch = torch.from_numpy(np.stack(rows)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
        # logits in float32: the three digits of bfloat16 are too few for a sum over a vocabulary
        nats = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        return nats.view(len(rows), -1)
