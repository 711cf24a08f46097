"""The `longmem` application. Options become one checked job; errors become a sentence and an exit code.

Exit codes: 0 ok, 1 some documents failed, 2 usage or bad input, 130 interrupted.
"""

from pathlib import Path
from typing import Annotated

import typer

import longmem
from pipelines.command.command_line import (
    EXIT_BAD_INPUT,
    LongMemGroup,
    exit_codes,
    local_or_hub,
)
from pipelines.command.console import open_console, say
from pipelines.command.option_types import path_option, text_option
from pipelines.command.options import Adapter, SpecialTokens, adapter_folder
from pipelines.fit.spec import fit
from pipelines.icl.spec import icl
from pipelines.perplexity.spec import perplexity
from pipelines.plan.spec import plan
from pipelines.pretrain.spec import pretrain
from pipelines.probe.spec import probe
from pipelines.serve.command import app as service_app
from pipelines.store.command import memory
from pipelines.suffix.spec import suffix
from pipelines.train.spec import train
from pipelines.watch.export_command import app as monitoring
from pipelines.watch.status_command import status

app = typer.Typer(
    cls=LongMemGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="LongMem: score long documents with a frozen language model, a memory of all it has read, and a SideNet.",
)


app.command()(perplexity)
app.command()(icl)
app.command()(suffix)
app.command()(train)
app.command()(fit)
app.command()(pretrain)
app.add_typer(memory, name="memory")
app.add_typer(service_app, name="service")
app.command()(status)
app.add_typer(monitoring, name="monitoring")
app.command()(plan)
app.command()(probe)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        say(f"longmem {longmem.__version__}")
        raise typer.Exit


@app.command()
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
