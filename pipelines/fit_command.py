"""`longmem fit`: options become one checked job."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.command_line import ComputeDtype, exit_codes, local_inputs, local_or_hub, parse_settings
from pipelines.options import SpecialTokens


def fit(
    data: Annotated[list[str], typer.Option(help="Documents to learn from: files and folders as in perplexity.")],
    out: Annotated[Path, typer.Option(help="Output folder: fit.json and the fitted model.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="LongMem folder, or a Hugging Face backbone (folder or hub id).", show_default="reference model"
        ),
    ] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Documents to judge by.", show_default="none")] = None,
    document_tokens: Annotated[
        int, typer.Option(help="Of each document, from its start; 4 KiB of memory a token.")
    ] = 20_480,
    epochs: Annotated[int, typer.Option(help="Times that every token is learned from.")] = 3,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one step, drawn from all documents.")] = 2048,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of matrices.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Order of the tokens.")] = 0,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of LongMemConfig, for example copy_repeats=8."),
    ] = None,
    special_tokens: SpecialTokens = None,
    dtype: Annotated[ComputeDtype, typer.Option(help="Compute type; weights learn in float32.")] = ComputeDtype.FLOAT32,
    threads: Annotated[int | None, typer.Option(help="Torch threads.", show_default="all cores")] = None,
) -> None:
    """Fit the copy head alone, in minutes: how much to trust what memory holds, for a backbone or a kind of text.

    **Example:** `longmem fit --model my-backbone --data books/train --valid books/valid --out runs/fit`
    """
    console = Console(stderr=True)
    with exit_codes(console, out):
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.model_source import REFERENCE_MODEL, ModelSource
        from longmem.training.copy_fit import CopyFitConfig
        from pipelines.fit import MODEL_FOLDER, FitJob, run_fit

        source = local_or_hub(model) if model is not None else str(REFERENCE_MODEL)
        settings = parse_settings(setting or [])
        if special_tokens is not None:
            settings["special_tokens"] = special_tokens.value
        job = FitJob(
            model=ModelSource(source, dtype=dtype.value, settings=settings),
            data=local_inputs(data),
            validation=local_inputs(valid or []),
            document_tokens=document_tokens,
            config=CopyFitConfig(epochs=epochs, batch_tokens=batch_tokens, learning_rate=learning_rate, seed=seed),
            out=out,
            threads=threads,
            command=shlex.join(["longmem", *sys.argv[1:]]),
        )
        run_fit(job, console)
        Console().print(f"fitted model: {out / MODEL_FOLDER}", soft_wrap=True)
