# SPDX-License-Identifier: Apache-2.0
"""Options and identity of a pretraining job."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longmem.config import Dtype
from longmem.errors import ConfigError
from longmem.pretraining.presets import Preset
from longmem.text.documents import DocumentInput, shown_inputs
from pipelines.command.choices import TrackerName
from pipelines.command.command_line import check_device


@dataclass(frozen=True, kw_only=True)
class PretrainingJob:
    """Validated options of the job. Raises ConfigError."""

    preset: Preset
    data: tuple[DocumentInput, ...]
    valid: tuple[DocumentInput, ...]
    """Validation inputs; empty for no validation."""
    out: Path
    valid_tokens: int = 4096
    """Tokens that are read of each validation document, from its start."""
    device: str = "cpu"
    dtype: Dtype = "bfloat16"
    threads: int = 1
    validate_every: int = 200
    checkpoint_every: int = 200
    max_minutes: float | None = None
    """Minutes after which this run ends with a checkpoint; None runs to the end."""
    resume: bool = False
    track: TrackerName | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("valid_tokens", "threads", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"--max-minutes must be more than 0, got {self.max_minutes:g}")
        if not self.data:
            raise ConfigError("no training data: give files or folders of text with --data, or a dataset")
        check_device(self.device)


def identity(job: PretrainingJob) -> dict[str, Any]:
    """Return everything that decides the training curve; device, threads and micro-batch size do not."""
    config = asdict(job.preset.config)
    del config["micro_rows"]
    return {
        "job": "pretrain",
        "data": shown_inputs(job.data),
        "shape": asdict(job.preset.shape),
        "training": config,
        "dtype": job.dtype,
        "validation": shown_inputs(job.valid),
        "validation_tokens": job.valid_tokens,
    }
