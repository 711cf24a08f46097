# SPDX-License-Identifier: Apache-2.0
"""Settings of pretraining: all that determine its curve, except the model's shape."""

import math
from dataclasses import dataclass, replace

from longmem.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Hyperparameters of pretraining. Raises ConfigError, which names the field and the expected values."""

    window_tokens: int
    """Tokens of one training window, the context of the model."""
    batch_tokens: int
    """Tokens of one optimiser step: a multiple of `window_tokens`."""
    micro_rows: int
    """Windows of one forward and backward pass; gradients are accumulated over a step."""
    learning_rate: float
    """Peak learning rate."""
    passes: float = 1.0
    """Passes over the corpus; ignored if `steps` is given."""
    steps: int | None = None
    """Optimiser steps; None: derived from `passes`."""
    warmup_steps: int = 100
    cooldown_share: float = 0.3
    """Final share of the steps, over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors have none."""
    clip_norm: float = 1.0
    """Maximum norm of a gradient; longer ones are scaled down to it."""
    repeat_share: float = 0.1
    """Share of windows whose beginning is repeated up to their end (see `longmem.pretraining.windows`)."""
    seed: int = 0
    """Seed of the initial weights, the order of the windows, and the choice of repeated ones."""

    def __post_init__(self) -> None:
        for name, least in (("window_tokens", 2), ("batch_tokens", 2), ("micro_rows", 1), ("warmup_steps", 0)):
            self._require_whole(name, least)
        self._require_whole("seed", 0)
        if self.steps is not None:
            self._require_whole("steps", 1)
        if self.batch_tokens % self.window_tokens:
            raise ConfigError(
                f"batch_tokens must be a multiple of the window's {self.window_tokens} tokens, got {self.batch_tokens}"
            )
        for name in ("learning_rate", "clip_norm", "passes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        for name in ("cooldown_share", "repeat_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)!r}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay must be at least 0, got {self.weight_decay!r}")

    def _require_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")

    @property
    def rows(self) -> int:
        """Number of windows of one step."""
        return self.batch_tokens // self.window_tokens

    @property
    def num_steps(self) -> int:
        """Number of steps; `steps` must be set."""
        assert self.steps is not None, "the number of steps is known only with the corpus: call with_steps first"
        return self.steps

    def with_steps(self, num_windows: int) -> "PretrainingConfig":
        """Return the settings with `steps` set for a corpus of `num_windows` windows."""
        if self.steps is not None:
            return self
        return replace(self, steps=max(1, int(self.passes * num_windows / self.rows)))

    def rate(self, step: int) -> float:
        """Return the learning rate at a step (from 0) relative to its peak: linear warm-up, constant, linear decay."""
        warm = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        cooldown_steps = self.cooldown_share * self.num_steps
        cool = (self.num_steps - step) / (cooldown_steps + 1)
        return min(1.0, warm, cool)
