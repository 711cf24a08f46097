# SPDX-License-Identifier: Apache-2.0
"""`longmem fit`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path

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
    REQUIRED,
    choice_field,
    from_options,
    path_field,
    real_field,
    text_field,
    whole_field,
)
from pipelines.command.layer_options import LayerOptions
from pipelines.command.options import (
    BackboneOptions,
    ProcessThreads,
    RestartOption,
    model_settings,
)
from pipelines.command.spec import CommandSpec, command
from pipelines.command.tracking_option import TrackOption
from pipelines.command.training_options import TrainingDataOptions


@dataclass(frozen=True, kw_only=True)
class FitSpec(
    TrackOption, ProcessThreads, RestartOption, LayerOptions, BackboneOptions, TrainingDataOptions, CommandSpec
):
    """Fit the copy head alone, in minutes: how much to trust what memory holds, for a backbone or a kind of text.

    **Example:** `longmem fit --model my-backbone --data books/train --valid books/valid --out runs/fit`
    """

    out: Path = path_field(REQUIRED, "Output folder: fit.json and the fitted model.")
    model: str | None = text_field(
        None,
        "LongMem folder or longmem-smollm2-135m, or a backbone: Hugging Face folder, hub id, GGUF file, smollm2-135m.",
        shown="reference model",
    )
    document_tokens: int = whole_field(20_480, "Of each document, from its start; 4 KiB of memory a token.")
    epochs: int = whole_field(3, "Times that every token is learned from.")
    batch_tokens: int = whole_field(2048, "Tokens of one step, drawn from all documents.")
    learning_rate: float = real_field(5e-4, "Peak learning rate of matrices.", above=True, most=100)
    seed: int = whole_field(0, "Order of the tokens.", least=0)
    setting: list[str] | None = text_field(
        None, "A field of LongMemConfig, for example copy_repeats=8.", names=("--set",), metavar="NAME=VALUE"
    )
    dtype: ComputeDtype = choice_field("float32", "Compute type; weights learn in float32.")

    def run(self, console: Console) -> None:
        self.check_track()
        if not self.resume:
            check_model(self.model)
            self.check_data()
        with loading(console):
            from longmem.model.source import REFERENCE_MODEL, ModelSource
            from longmem.training.copy_head_fit import CopyFitConfig
            from pipelines.fit.job import MODEL_FOLDER, FitJob, run_fit

        job = from_options(
            FitJob,
            self,
            model=ModelSource(
                local_or_hub(self.model or str(REFERENCE_MODEL)),
                dtype=self.dtype,
                settings=parse_settings(self.setting or []) | model_settings(self),
                adapter=self.adapter_folder(self.model),
            ),
            data=self.training_data,
            validation=self.validation_data,
            config=from_options(CopyFitConfig, self),
            command=command_text(),
        )
        result = f"fitted model: {self.out / MODEL_FOLDER}"
        summary = run_fit(job, console)
        show_summary(summary, self.out, self.as_json, lambda console: console.print(result, soft_wrap=True))


fit = command(FitSpec)
