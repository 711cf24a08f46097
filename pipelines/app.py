# SPDX-License-Identifier: Apache-2.0
"""The `longmem` application: a table of commands, which are imported when they are used.

Exit codes: 0 ok, 1 some documents failed, 2 usage or bad input, 130 interrupted.
"""

from typing import Annotated

import typer

import longmem
from pipelines.command.console import say
from pipelines.command.lazy import MARKUP, LazyCommand, LazyGroup

COMMANDS = {
    "perplexity": LazyCommand(
        "pipelines.perplexity.spec:perplexity",
        "Perplexity of long documents, with memory and without.",
    ),
    "icl": LazyCommand(
        "pipelines.icl.spec:icl",
        "Many-shot in-context learning: demonstrations in context, in memory, and both.",
    ),
    "suffix": LazyCommand(
        "pipelines.suffix.spec:suffix",
        "Choose which of several texts follows a long context: accuracy by context length, with memory and without.",
    ),
    "train": LazyCommand(
        "pipelines.train.spec:train",
        "Train a SideNet to read from memory; the backbone stays as it is.",
    ),
    "fit": LazyCommand(
        "pipelines.fit.spec:fit",
        "Fit the copy head alone, in minutes: how much to trust what memory holds, for a backbone or a kind of text.",
    ),
    "pretrain": LazyCommand(
        "pipelines.pretrain.spec:pretrain",
        "Train a small backbone and its tokenizer from scratch, in several time slices if needed.",
    ),
    "view": LazyCommand(
        "pipelines.view.spec:view",
        "A page in the browser: what each token or item read from memory, how far it was trusted, whether that was "
        "right.",
    ),
    "status": LazyCommand(
        "pipelines.watch.status_command:status",
        "Documents, tokens per second, lag, time left and failures of live jobs.",
    ),
    "generate": LazyCommand(
        "pipelines.generate.command:generate",
        "Continue a prompt, reading the memory of a stored document, of a file, or of the prompt alone.",
    ),
    "resume": LazyCommand(
        "pipelines.resume.command:resume",
        "Continue an interrupted job, with the inputs and options that it began with; nothing is retyped.",
    ),
    "compare": LazyCommand(
        "pipelines.compare.spec:compare",
        "Paired differences between finished runs of one kind, perplexity or icl; the first run is the baseline.",
    ),
    "plan": LazyCommand(
        "pipelines.plan.spec:plan",
        "Time, memory, disk and network of a job before it starts, from what one segment costs on this machine.",
    ),
    "probe": LazyCommand(
        "pipelines.probe.spec:probe",
        "Synthetic tests whose answer is only in memory: pass keys at any depth, dictionary lookup, random labels.",
    ),
    "doctor": LazyCommand(
        "pipelines.doctor.spec:doctor",
        "Versions, threads, number types, Ray and disk of this machine, and what is wrong with them; or, with "
        "`--model`, how well each layer of a backbone works as memory.",
    ),
    "memory": LazyCommand(
        "pipelines.store.command:memory",
        "Look into a memory store, check it, tidy it.",
    ),
    "service": LazyCommand(
        "pipelines.serve.command:app",
        "A long-lived service on a running Ray cluster: many jobs and clients share its workers and its memory.",
    ),
    "monitoring": LazyCommand(
        "pipelines.watch.export_command:app",
        "Files for Prometheus and Grafana.",
    ),
}
"""Commands in the order that `longmem --help` lists them."""


class Root(LazyGroup):
    """Root of the command line."""

    table = COMMANDS


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    help="LongMem: score long documents with a frozen language model, a memory of all it has read, and a SideNet.",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        say(f"longmem {longmem.__version__}")
        raise typer.Exit
