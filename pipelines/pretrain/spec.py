"""`longmem pretrain`: options become one checked job."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipelines.command.choices import ComputeDtype
from pipelines.command.command_line import command_text, num_cores, say_if_finished
from pipelines.command.console import open_console
from pipelines.command.option_types import MOST_THREADS, path_option, real_option, text_option, whole_option
from pipelines.command.options import TrainingRunOptions
from pipelines.command.spec import CommandSpec, Mark, command, marked_fields

if TYPE_CHECKING:
    # loads torch
    from longmem.pretraining.presets import Preset

OF_THE_PRESET = Mark("A field of PretrainingConfig with the same name; None takes the value of the size.")


@dataclass(frozen=True, kw_only=True)
class PretrainSpec(TrainingRunOptions, CommandSpec):
    """Train a small backbone and its tokenizer from nothing, in slices if need be.

    **Example:** `longmem pretrain --size 8m --data books/train --valid books/valid --out runs/backbone`
    """

    out: Annotated[Path, path_option(help="Output folder: tokenizer, corpus, curves, checkpoints, the backbone.")]
    size: Annotated[str, text_option(help="8m (the reference model's shape, for a CPU) or 100m (for a GPU).")]
    valid_tokens: Annotated[int, whole_option(help="Of each of them, from its start.")] = 4096
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job in --out, or begin it where --out is empty.")
    ] = False
    max_minutes: Annotated[
        float | None,
        real_option(
            help="End this slice after so long, with a checkpoint; --resume goes on.", show_default="no end", above=True
        ),
    ] = None
    steps: Annotated[
        int | None,
        whole_option(help="Optimiser steps.", show_default="one pass over the data; four for 100m"),
        OF_THE_PRESET,
    ] = None
    batch_tokens: Annotated[int | None, whole_option(help="Of a step.", show_default="the size's"), OF_THE_PRESET] = (
        None
    )
    micro_rows: Annotated[
        int | None, whole_option(help="Windows of one forward and backward.", show_default="the size's"), OF_THE_PRESET
    ] = None
    learning_rate: Annotated[
        float | None, real_option(help="Peak.", show_default="the size's", above=True, most=100), OF_THE_PRESET
    ] = None
    repeat_share: Annotated[
        float | None,
        real_option(help="Windows that repeat their beginning, to learn copying.", show_default="0.1", most=1),
        OF_THE_PRESET,
    ] = None
    seed: Annotated[int, whole_option(help="First weights and order of the windows.", least=0), OF_THE_PRESET] = 0
    dtype: Annotated[ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")] = "bfloat16"
    threads: Annotated[
        int | None, whole_option(help="Threads of torch and tokenizer.", show_default="cores", most=MOST_THREADS)
    ] = None

    @property
    def resumable_folder(self) -> Path:
        return self.out

    def run(self, console: Console) -> None:
        threads = self.threads or num_cores()
        # read once, when the tokenizer library starts its threads
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
        from pipelines.pretrain.job import PretrainingJob
        from pipelines.pretrain.run import run_pretraining

        job = PretrainingJob(
            preset=self._preset(),
            data=self.data_paths,
            valid=self.validation_paths,
            out=self.out,
            valid_tokens=self.valid_tokens,
            device=self.device,
            dtype=self.dtype,
            threads=threads,
            validate_every=self.validate_every,
            checkpoint_every=self.checkpoint_every,
            max_minutes=self.max_minutes,
            resume=self.resume,
            command=command_text(),
        )
        summary = run_pretraining(job, console)
        if say_if_finished(summary, self.out):
            return
        if summary is None:
            console.print("[yellow]slice over.[/] Continue with the same command and --resume")
        else:
            open_console().print(f"trained backbone: {self.out / 'model'}", soft_wrap=True)

    def _preset(self) -> "Preset":
        from longmem.pretraining.presets import preset_of

        preset = preset_of(self.size)
        chosen = {name: getattr(self, name) for name in marked_fields(type(self), OF_THE_PRESET)}
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(preset, config=replace(preset.config, **given))


pretrain = command(PretrainSpec)
