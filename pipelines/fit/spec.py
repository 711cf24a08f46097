"""`longmem fit`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.command.choices import ComputeDtype
from pipelines.command.command_line import command_text, local_or_hub, parse_settings, say_if_finished
from pipelines.command.console import open_console
from pipelines.command.option_types import path_option, real_option, text_option, whole_option
from pipelines.command.options import (
    Adapter,
    ProcessThreads,
    RestartOption,
    SpecialTokens,
    TrainingDataOptions,
    adapter_folder,
    model_settings,
)
from pipelines.command.spec import CommandSpec, command


@dataclass(frozen=True, kw_only=True)
class FitSpec(ProcessThreads, RestartOption, TrainingDataOptions, CommandSpec):
    """Fit the copy head alone, in minutes: how much to trust what memory holds, for a backbone or a kind of text.

    **Example:** `longmem fit --model my-backbone --data books/train --valid books/valid --out runs/fit`
    """

    out: Annotated[Path, path_option(help="Output folder: fit.json and the fitted model.")]
    model: Annotated[
        str | None,
        text_option(
            help="LongMem folder, or a Hugging Face backbone (folder or hub id).", show_default="reference model"
        ),
    ] = None
    adapter: Adapter = None
    document_tokens: Annotated[int, whole_option(help="Of each document, from its start; 4 KiB of memory a token.")] = (
        20_480
    )
    epochs: Annotated[int, whole_option(help="Times that every token is learned from.")] = 3
    batch_tokens: Annotated[int, whole_option(help="Tokens of one step, drawn from all documents.")] = 2048
    learning_rate: Annotated[float, real_option(help="Peak learning rate of matrices.", above=True, most=100)] = 5e-4
    seed: Annotated[int, whole_option(help="Order of the tokens.", least=0)] = 0
    setting: Annotated[
        list[str] | None,
        text_option("--set", metavar="NAME=VALUE", help="A field of LongMemConfig, for example copy_repeats=8."),
    ] = None
    special_tokens: SpecialTokens = None
    dtype: Annotated[ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")] = "float32"

    def run(self, console: Console) -> None:
        from longmem.model.source import REFERENCE_MODEL, ModelSource
        from longmem.training.copy_head_fit import CopyFitConfig
        from pipelines.fit.job import MODEL_FOLDER, FitJob, run_fit

        job = FitJob(
            model=ModelSource(
                local_or_hub(self.model or str(REFERENCE_MODEL)),
                dtype=self.dtype,
                settings=parse_settings(self.setting or []) | model_settings(self),
                adapter=adapter_folder(self.adapter, self.model),
            ),
            data=self.data_paths,
            validation=self.validation_paths,
            document_tokens=self.document_tokens,
            config=CopyFitConfig(
                epochs=self.epochs,
                batch_tokens=self.batch_tokens,
                learning_rate=self.learning_rate,
                seed=self.seed,
            ),
            out=self.out,
            threads=self.threads,
            resume=self.resume,
            command=command_text(),
        )
        if not say_if_finished(run_fit(job, console), self.out):
            open_console().print(f"fitted model: {self.out / MODEL_FOLDER}", soft_wrap=True)


fit = command(FitSpec)
