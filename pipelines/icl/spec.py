"""`longmem icl`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console

from actors.config import ClusterShape
from pipelines.command.command_line import command_text, parse_numbers, say_if_finished
from pipelines.command.console import open_console
from pipelines.command.option_types import (
    MOST_WORKERS,
    path_option,
    real_option,
    text_argument,
    text_option,
    whole_option,
)
from pipelines.command.options import AddressOption, OutputOptions, PoolOptions, StoredModelOptions
from pipelines.command.spec import MEMORY_STORE, MODEL_SETTING, WORKERS, CommandSpec, command


@dataclass(frozen=True, kw_only=True)
class IclSpec(PoolOptions, AddressOption, StoredModelOptions, OutputOptions, CommandSpec):
    """Many-shot in-context learning: demonstrations in context, in memory, and both.

    Demonstrations are written to the memory once; all items, on all workers, read them there.

    **Example:** `longmem icl sst2 trec --data icl/ --limit-items 200 --out runs/icl`
    """

    tasks: Annotated[
        list[str],
        text_argument(
            metavar="TASK...",
            show_default=False,
            help="sst2, mr, subj, sst5, mpqa, trec, squad (their files are in --data), or the path of a task's .toml.",
        ),
    ]
    data: Annotated[
        Path | None, path_option(help="Folder with the tasks' files.", show_default="that of a task's own .toml")
    ] = None
    shots: Annotated[str, text_option(help="Demonstrations in context: numbers with commas.")] = "0,4,20"
    memory_shots: Annotated[str, text_option(help="Demonstrations in memory: numbers with commas.")] = "0,20,200,2000"
    seeds: Annotated[int, whole_option(help="Draws of demonstrations; each has an order of its own.")] = 6
    limit_items: Annotated[
        int | None,
        whole_option(
            "--limit-items", "--limit", help="Items of each task, drawn once for all cells.", show_default="all"
        ),
    ] = None
    store: Annotated[
        str | None,
        text_option(
            help="Memory store in which demonstrations stay, for later jobs: LanceDB folder or URI.",
            show_default="inside --out, removed at the end",
        ),
        MEMORY_STORE,
    ] = None
    workers: Annotated[
        int,
        whole_option(help="Workers, which encode demonstrations and answer items.", most=MOST_WORKERS),
        WORKERS,
    ] = 1
    gpus: Annotated[float, real_option(help="GPU share of each worker.", most=64), WORKERS] = 0.0
    batch_items: Annotated[int, whole_option(help="Items that a worker gets at a time."), WORKERS] = 32
    memory_tokens: Annotated[
        int | None,
        whole_option(
            help="Past tokens that an item may read.",
            show_default="the model's, or more if demonstrations need it",
            least=0,
        ),
        MODEL_SETTING,
    ] = None

    def run(self, console: Console) -> None:
        from pipelines.icl.console import print_result
        from pipelines.icl.job import IclJob, run_icl
        from pipelines.icl.task import load_task

        self.check_resume()
        threads = self.worker_threads(1 if self.address == "none" else self.workers)
        cluster = None
        if self.address != "none":
            cluster = ClusterShape(
                address=self.address,
                encoders=self.workers,
                readers=0,
                stores=self.stores,
                threads=threads,
                encoder_gpus=self.gpus,
                window_bytes=self.window_bytes,
            )
        job = IclJob(
            tasks=tuple(load_task(name, self.data) for name in self.tasks),
            out=self.folder,
            model=self.source(console, on_gpu=self.gpus > 0),
            cluster=cluster,
            threads=threads,
            shots=_numbers("--shots", self.shots),
            memory_shots=_numbers("--memory-shots", self.memory_shots),
            seeds=self.seeds,
            limit_items=self.limit_items,
            batch_items=self.batch_items,
            store=self.store,
            resume=self.resume,
            command=command_text(),
        )
        summary = run_icl(job, console)
        if not say_if_finished(summary, job.out):
            print_result(open_console(), summary, job.out)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    return parse_numbers(text, int, f"{option} needs numbers with commas between them, such as 0,4,20;")


icl = command(IclSpec)
