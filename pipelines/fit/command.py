"""`longmem fit`: options become one checked job."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command.command_line import (
    ComputeDtype,
    check_inputs,
    command_text,
    exit_codes,
    local_inputs,
    local_or_hub,
    parse_settings,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import MOST_THREADS, path_option, real_option, text_option, whole_option
from pipelines.command.options import Adapter, ResumeFromStart, SpecialTokens, adapter_folder


def fit(
    data: Annotated[list[str], text_option(help="Documents to learn from: files and folders as in perplexity.")],
    out: Annotated[Path, path_option(help="Output folder: fit.json and the fitted model.")],
    model: Annotated[
        str | None,
        text_option(
            help="LongMem folder, or a Hugging Face backbone (folder or hub id).", show_default="reference model"
        ),
    ] = None,
    adapter: Adapter = None,
    valid: Annotated[list[str] | None, text_option(help="Documents to judge by.", show_default="none")] = None,
    document_tokens: Annotated[
        int, whole_option(help="Of each document, from its start; 4 KiB of memory a token.")
    ] = 20_480,
    epochs: Annotated[int, whole_option(help="Times that every token is learned from.")] = 3,
    batch_tokens: Annotated[int, whole_option(help="Tokens of one step, drawn from all documents.")] = 2048,
    learning_rate: Annotated[float, real_option(help="Peak learning rate of matrices.", above=True, most=100)] = 5e-4,
    seed: Annotated[int, whole_option(help="Order of the tokens.", least=0)] = 0,
    setting: Annotated[
        list[str] | None,
        text_option("--set", metavar="NAME=VALUE", help="A field of LongMemConfig, for example copy_repeats=8."),
    ] = None,
    resume: ResumeFromStart = False,
    special_tokens: SpecialTokens = None,
    dtype: Annotated[ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")] = ComputeDtype.FLOAT32,
    threads: Annotated[
        int | None, whole_option(help="Torch threads.", show_default="all cores", most=MOST_THREADS)
    ] = None,
) -> None:
    """Fit the copy head alone, in minutes: how much to trust what memory holds, for a backbone or a kind of text.

    **Example:** `longmem fit --model my-backbone --data books/train --valid books/valid --out runs/fit`
    """
    console = open_console(stderr=True)
    with exit_codes(console):
        if not resume:
            check_inputs(*data, *valid or ())
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.model.source import REFERENCE_MODEL, ModelSource
        from longmem.training.copy_head_fit import CopyFitConfig
        from pipelines.fit.job import MODEL_FOLDER, FitJob, run_fit

        source = local_or_hub(model) if model is not None else str(REFERENCE_MODEL)
        settings = parse_settings(setting or [])
        if special_tokens is not None:
            settings["special_tokens"] = special_tokens.value
        job = FitJob(
            model=ModelSource(source, dtype=dtype.value, settings=settings, adapter=adapter_folder(adapter, model)),
            data=local_inputs(data),
            validation=local_inputs(valid or []),
            document_tokens=document_tokens,
            config=CopyFitConfig(epochs=epochs, batch_tokens=batch_tokens, learning_rate=learning_rate, seed=seed),
            out=out,
            threads=threads,
            resume=resume,
            command=command_text(),
        )
        if not say_if_finished(run_fit(job, console), out):
            open_console().print(f"fitted model: {out / MODEL_FOLDER}", soft_wrap=True)
