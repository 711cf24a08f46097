"""The `longmem` application. Options become one checked job; errors become a sentence and an exit code.

Exit codes: 0 ok, 1 some documents failed, 2 usage or bad input, 130 interrupted.
"""

from typing import Annotated

import typer

import longmem
from pipelines.command.command_line import LongMemGroup
from pipelines.command.console import say
from pipelines.doctor.spec import doctor
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
app.command()(doctor)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        say(f"longmem {longmem.__version__}")
        raise typer.Exit
