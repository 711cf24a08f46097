"""`longmem train`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich.console import Console

from pipelines.command.choices import ComputeDtype
from pipelines.command.command_line import command_text, local_or_hub, parse_settings, say_if_finished
from pipelines.command.console import open_console
from pipelines.command.option_types import MOST_WORKERS, path_option, real_option, text_option, whole_option
from pipelines.command.options import (
    Adapter,
    SpecialTokens,
    TrainingRunOptions,
    WorkerThreads,
    adapter_folder,
    model_settings,
    without_memory,
)
from pipelines.command.spec import MODEL, MODEL_SETTING, WORKERS, CommandSpec, Panel, command

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class TrainedModelOptions:
    """Backbone, and the memory and SideNet that learn to go with it."""

    PANEL: ClassVar[Panel] = MODEL

    backbone: Annotated[
        str | None,
        text_option(
            "--backbone",
            "--model",
            help="Frozen backbone (Hugging Face folder or hub id), or a LongMem folder whose SideNet learns on.",
            show_default="the reference model's",
        ),
    ] = None
    adapter: Adapter = None
    segment_tokens: Annotated[int | None, whole_option(help="Local context.", show_default="1024"), MODEL_SETTING] = (
        None
    )
    memory_tokens: Annotated[
        int | None, whole_option(help="Past tokens in memory.", show_default="65536", least=0), MODEL_SETTING
    ] = None
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Control: the same SideNet without memory.")] = False
    special_tokens: SpecialTokens = None
    chunk_tokens: Annotated[
        int | None, whole_option(help="Tokens found and read together.", show_default="1"), MODEL_SETTING
    ] = None
    top_k: Annotated[int | None, whole_option(help="Tokens retrieved per token.", show_default="64"), MODEL_SETTING] = (
        None
    )
    memory_layer: Annotated[
        int | None,
        whole_option(help="Backbone layer whose keys are stored.", show_default="three quarters up", least=0),
        MODEL_SETTING,
    ] = None
    layer_reduction: Annotated[
        int | None, whole_option(help="Backbone layers for each SideNet layer.", show_default="2"), MODEL_SETTING
    ] = None
    gate_start: Annotated[
        float | None,
        real_option(help="Fusion gate's first logit.", show_default="0", least=-1e6, most=1e6),
        MODEL_SETTING,
    ] = None
    scale_start: Annotated[
        float | None,
        real_option(help="Layer scale's first value.", show_default="0", least=-1e6, most=1e6),
        MODEL_SETTING,
    ] = None
    setting: Annotated[
        list[str] | None,
        text_option("--set", metavar="NAME=VALUE", help="Any other field of LongMemConfig, for example keys=raw."),
    ] = None
    dtype: Annotated[ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")] = "bfloat16"

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
            adapter=adapter_folder(self.adapter, self.backbone, "--backbone"),
        )


@dataclass(frozen=True, kw_only=True)
class TrainSpec(WorkerThreads, TrainedModelOptions, TrainingRunOptions, CommandSpec):
    """Train a SideNet to read from memory; the backbone stays as it is.

    **Example:** `longmem train --data books/train --valid books/valid --out runs/train`
    """

    out: Annotated[Path, path_option(help="Output folder: curves, checkpoints, and the trained model.")]
    valid_tokens: Annotated[int, whole_option(help="Of each of them, from its start.")] = 16_384
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False
    steps: Annotated[int, whole_option(help="Optimiser steps.")] = 2000
    rows: Annotated[int, whole_option(help="Documents read side by side; a step is one segment of each.")] = 8
    micro_rows: Annotated[int, whole_option(help="Rows of one forward and backward.")] = 4
    learning_rate: Annotated[float, real_option(help="Peak learning rate.", above=True, most=100)] = 1e-3
    warmup_steps: Annotated[int, whole_option(help="Steps of linear warm-up.", least=0)] = 50
    weight_decay: Annotated[float, real_option(help="On the copied layers' matrices.", most=100)] = 0.01
    clip_norm: Annotated[float, real_option(help="Longest gradient applied as it is.", above=True)] = 1.0
    seed: Annotated[int, whole_option(help="Order of the documents.", least=0)] = 0
    frozen_layers: Annotated[
        bool, typer.Option("--frozen-layers", help="Train only scale, gate, reader and copy head.")
    ] = False
    address: Annotated[
        str,
        text_option(help="none (this process), or Ray: local, auto, or a cluster's address."),
        WORKERS,
    ] = "none"
    workers: Annotated[
        int,
        whole_option(help="Data-parallel Ray workers; they share the rows.", most=MOST_WORKERS),
        WORKERS,
    ] = 1

    @property
    def resumable_folder(self) -> Path:
        return self.out

    def run(self, console: Console) -> None:
        from longmem.training.config import TrainingConfig
        from longmem.training.worker import TrainingTask
        from pipelines.train.job import TrainingJob, run_training

        task = TrainingTask(
            model=self.source(self.device),
            data=self.data_paths,
            validation=self.validation_paths,
            validation_tokens=self.valid_tokens,
            config=TrainingConfig(
                steps=self.steps,
                rows=self.rows,
                micro_rows=self.micro_rows,
                learning_rate=self.learning_rate,
                warmup_steps=self.warmup_steps,
                weight_decay=self.weight_decay,
                clip_norm=self.clip_norm,
                seed=self.seed,
                frozen_layers=self.frozen_layers,
            ),
            threads=self.worker_threads(self.workers),
        )
        job = TrainingJob(
            task=task,
            out=self.out,
            workers=self.workers,
            address=self.address,
            validate_every=self.validate_every,
            checkpoint_every=self.checkpoint_every,
            resume=self.resume,
            command=command_text(),
        )
        if not say_if_finished(run_training(job, console), self.out):
            open_console().print(f"trained model: {self.out / 'model'}", soft_wrap=True)


train = command(TrainSpec)
