"""`longmem doctor`: options choose between an examination of this machine and one of a backbone."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.command.command_line import EXIT_BAD_INPUT, exit_codes, local_or_hub
from pipelines.command.console import open_console
from pipelines.command.option_types import path_option, text_option
from pipelines.command.options import Adapter, SpecialTokens, adapter_folder


def doctor(
    out: Annotated[Path, path_option(help="Folder whose disk to check.")] = Path(),
    model: Annotated[
        str | None, text_option(help="Instead: can this backbone feed a memory, and which layer should be stored?")
    ] = None,
    adapter: Adapter = None,
    text: Annotated[
        str | None, text_option(help="With --model: document to measure on.", show_default="the language reference")
    ] = None,
    special_tokens: SpecialTokens = None,
) -> None:
    """Versions, threads, number types, Ray and disk of this machine, and what is wrong with them; or, with `--model`,
    what a backbone's layers are worth as memory.

    **Example:** `longmem doctor`, or `longmem doctor --model gpt2 --text book.txt`
    """
    if model is not None:
        console = open_console(stderr=True)
        with exit_codes(console, out):
            from pipelines.doctor.backbone import examine_model, render_probe

            examined = examine_model(local_or_hub(model), text, special_tokens, console, adapter_folder(adapter, model))
            render_probe(examined, model, open_console())
        return
    for name, value in (("--text", text), ("--adapter", adapter)):
        if value is not None:
            raise typer.BadParameter("needs --model", param_hint=name)
    from actors.cluster import find_cluster
    from pipelines.doctor.machine import diagnose, render

    findings = diagnose(out, find_cluster=find_cluster)
    render(findings, open_console())
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(EXIT_BAD_INPUT)
