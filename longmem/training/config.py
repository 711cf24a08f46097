# SPDX-License-Identifier: Apache-2.0
"""Settings of a training run that determine its learning curve, apart from the model's own configuration."""

import math
from dataclasses import dataclass, fields
from typing import Any

from longmem.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyperparameters of SideNet training.

    Raises ConfigError for a value that cannot work, naming the field and the expected range.
    """

    steps: int = 2000
    """Number of optimiser steps."""
    rows: int = 8
    """Number of documents read in parallel; one step is one segment of each."""
    micro_rows: int = 4
    """Rows of one forward and backward; gradients of a step's forwards are accumulated."""
    learning_rate: float = 1e-3
    """Peak learning rate of copied layers and new matrices."""
    vector_factor: float = 10.0
    """Factor on the learning rate of the few new vectors and scalars (scale, gate, temperatures, biases), which move
    far."""
    warmup_steps: int = 50
    final_fraction: float = 0.05
    """Learning rate at the end of the cosine, as a share of the peak."""
    weight_decay: float = 0.01
    """Weight decay of copied matrices; other parameters have none."""
    clip_norm: float = 1.0
    """Largest gradient norm that is applied unscaled."""
    seed: int = 0
    """Seed of the document order."""
    frozen_layers: bool = False
    """Train only the new parameters (scale, gate, reader, copy head), not the copied layers."""

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "micro_rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be a whole number of at least 0, got {self.warmup_steps!r}")
        for name in ("learning_rate", "vector_factor", "clip_norm"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        if not 0 <= self.final_fraction <= 1:
            raise ConfigError(f"final_fraction must be between 0 and 1, got {self.final_fraction!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay must be at least 0, got {self.weight_decay!r}")

    def rate(self, step: int) -> float:
        """Return the share of the peak learning rate at a step (counted from 0): linear warm-up, then half a cosine."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingConfig":
        """Return the configuration saved as `vars(config)`. Raises ConfigError for unknown names, listing the known
        ones."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown training settings {unknown}; known are {sorted(known)}")
        return cls(**values)
