# SPDX-License-Identifier: Apache-2.0
"""`longmem train`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipelines.command.choices import ComputeDtype
from pipelines.command.command_line import (
    check_model,
    command_text,
    loading,
    local_or_hub,
    parse_settings,
    show_summary,
)
from pipelines.command.fields import (
    MODEL_SETTING,
    REQUIRED,
    WORKERS,
    choice_field,
    flag_field,
    from_options,
    path_field,
    real_field,
    text_field,
    whole_field,
)
from pipelines.command.option_types import MOST_WORKERS
from pipelines.command.options import BackboneOptions, WorkerThreads, model_settings, without_memory
from pipelines.command.spec import CommandSpec, command
from pipelines.command.tracking_option import TrackOption
from pipelines.command.training_options import TrainingRunOptions

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class TrainedModelOptions(BackboneOptions):
    """Backbone, and the memory and SideNet that learn to go with it."""

    backbone: str | None = text_field(
        None,
        "Frozen backbone (Hugging Face folder, hub id, GGUF file or smollm2-135m), or a LongMem folder whose SideNet "
        "is trained further.",
        names=("--backbone", "--model"),
        shown="the reference model's",
    )
    segment_tokens: int | None = whole_field(None, "Local context.", MODEL_SETTING, shown="1024")
    memory_tokens: int | None = whole_field(None, "Past tokens in memory.", MODEL_SETTING, shown="65536", least=0)
    no_memory: bool = flag_field("Control: the same SideNet without memory.")
    chunk_tokens: int | None = whole_field(None, "Tokens found and read together.", MODEL_SETTING, shown="1")
    top_k: int | None = whole_field(None, "Tokens retrieved per token.", MODEL_SETTING, shown="64")
    memory_layer: int | None = whole_field(
        None, "Backbone layer whose keys are stored.", MODEL_SETTING, shown="three quarters up", least=0
    )
    layer_reduction: int | None = whole_field(None, "Backbone layers for each SideNet layer.", MODEL_SETTING, shown="2")
    delta_rank: int | None = whole_field(
        None,
        "Train low-rank changes of the SideNet's matrices (LoRA) instead of whole ones; 0 for whole ones.",
        MODEL_SETTING,
        shown="0",
        least=0,
    )
    gate_start: float | None = real_field(
        None, "Fusion gate's first logit.", MODEL_SETTING, shown="0", least=-1e6, most=1e6
    )
    scale_start: float | None = real_field(
        None, "Layer scale's first value.", MODEL_SETTING, shown="0", least=-1e6, most=1e6
    )
    setting: list[str] | None = text_field(
        None, "Any other field of LongMemConfig, for example keys=raw.", names=("--set",), metavar="NAME=VALUE"
    )
    dtype: ComputeDtype = choice_field("bfloat16", "Compute type; weights learn in float32.")

    def source(self, device: str) -> "ModelSource":
        """Return the backbone and its settings. Raise ConfigError for options that contradict each other."""
        from longmem.model.source import REFERENCE_MODEL, ModelSource, reference_settings

        named = model_settings(self) | without_memory(self.no_memory, self.memory_tokens)
        settings: dict[str, Any] = parse_settings(self.setting or []) | named
        if self.backbone is None:
            # the segments and the layer that suit the reference backbone
            settings = reference_settings("segment_tokens", "memory_layer") | settings
        return ModelSource(
            local_or_hub(self.backbone or str(REFERENCE_MODEL / "backbone")),
            dtype=self.dtype,
            device=device,
            settings=settings,
            adapter=self.adapter_folder(self.backbone, "--backbone"),
        )


@dataclass(frozen=True, kw_only=True)
class TrainSpec(TrackOption, WorkerThreads, TrainedModelOptions, TrainingRunOptions, CommandSpec):
    """Train a SideNet to read from memory; the backbone stays as it is.

    **Example:** `longmem train --data books/train --valid books/valid --out runs/train`
    """

    out: Path = path_field(REQUIRED, "Output folder: curves, checkpoints, and the trained model.")
    valid_tokens: int = whole_field(16_384, "Tokens that are read of each validation document, from its start.")
    resume: bool = flag_field("Continue from the last checkpoint in --out.")
    steps: int = whole_field(2000, "Optimiser steps.")
    rows: int = whole_field(8, "Documents read side by side; a step is one segment of each.")
    micro_rows: int = whole_field(4, "Rows of one forward and backward.")
    learning_rate: float = real_field(1e-3, "Peak learning rate.", above=True, most=100)
    warmup_steps: int = whole_field(50, "Steps of linear warm-up.", least=0)
    weight_decay: float = real_field(0.01, "On the copied layers' matrices.", most=100)
    clip_norm: float = real_field(1.0, "Maximum gradient norm; longer gradients are scaled down to it.", above=True)
    seed: int = whole_field(0, "Order of the documents.", least=0)
    frozen_layers: bool = flag_field("Train only scale, gate, reader and copy head.")
    address: str = text_field("none", "none (this process), or Ray: local, auto, or a cluster's address.", WORKERS)
    workers: int = whole_field(1, "Data-parallel Ray workers; they share the rows.", WORKERS, most=MOST_WORKERS)

    @property
    def resumable_folder(self) -> Path:
        return self.out

    def run(self, console: Console) -> None:
        self.check_track()
        if not self.resume:
            check_model(self.backbone)
            self.check_data()
        with loading(console):
            from longmem.training.config import TrainingConfig
            from longmem.training.worker import TrainingTask
            from pipelines.train.job import TrainingJob, run_training

        task = TrainingTask(
            model=self.source(self.device),
            data=self.training_data,
            validation=self.validation_data,
            validation_tokens=self.valid_tokens,
            config=from_options(TrainingConfig, self),
            threads=self.worker_threads(self.workers),
        )
        job = from_options(TrainingJob, self, task=task, command=command_text())
        result = f"trained model: {self.out / 'model'}"
        summary = run_training(job, console)
        show_summary(summary, self.out, self.as_json, lambda console: console.print(result, soft_wrap=True))


train = command(TrainSpec)
