# SPDX-License-Identifier: Apache-2.0
"""`longmem icl`: options become one checked job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from longmem.config import DemonstrationChoice
from pipelines.command.command_line import check_model, command_text, loading, parse_numbers, show_summary
from pipelines.command.fields import (
    DECIDED_BY_SERVICE,
    MEMORY_STORE,
    MODEL_SETTING,
    REQUIRED,
    WORKERS,
    choice_field,
    from_options,
    path_field,
    text_argument_field,
    text_field,
    whole_field,
)
from pipelines.command.option_types import MOST_WORKERS
from pipelines.command.options import (
    IN_PROCESS,
    OutputOptions,
    PoolOptions,
    RequestWorkerOptions,
    StoredModelOptions,
    default_workers,
)
from pipelines.command.spec import CommandSpec, command


@dataclass(frozen=True, kw_only=True)
class IclSpec(PoolOptions, RequestWorkerOptions, StoredModelOptions, OutputOptions, CommandSpec):
    """Many-shot in-context learning: demonstrations in context, in memory, and both.

    Demonstrations are written to the memory once; all items, on all workers, read them there.

    **Example:** `longmem icl sst2 trec --data icl/ --limit-items 200 --out runs/icl`
    """

    tasks: list[str] = text_argument_field(
        REQUIRED,
        "sst2, mr, subj, sst5, mpqa, trec, squad (their files are in --data), or the path of a task's .toml.",
        "TASK...",
        shown=False,
    )
    data: Path | None = path_field(None, "Folder with the tasks' files.", shown="that of a task's own .toml")
    shots: str = text_field("0,4,20", "Demonstrations in context: numbers with commas.")
    memory_shots: str = text_field("0,20,200,2000", "Demonstrations in memory: numbers with commas.")
    seeds: int = whole_field(6, "Seeds, each of which draws the demonstrations anew and in another order.")
    limit_items: int | None = whole_field(
        None, "Items of each task, drawn once for all cells.", names=("--limit-items", "--limit"), shown="all"
    )
    demonstrations: Literal["tokens", "whole"] | None = choice_field(
        None,
        "What an item reads of a memory: tokens that a search finds, or whole demonstrations at every layer "
        "(needs --memory-layers all, and labels).",
        shown="whole where it can be",
    )
    read_demonstrations: int = whole_field(16, "Whole demonstrations that an item reads.")
    choose: DemonstrationChoice = choice_field(
        "idf",
        "Whole demonstrations that an item reads: the nearest by shared words (idf), by keys or by values of the upper "
        "layers, or random ones, as a control.",
    )
    left_out: int = whole_field(
        128,
        "Demonstrations of each memory that are asked as items, left out of their own retrieval, to calibrate what "
        "whole demonstrations and their labels say; 0 for none.",
        least=0,
    )
    pack_tokens: int | None = whole_field(
        None,
        "Tokens of whole demonstrations that are encoded together, each behind those before it; at most a segment.",
        shown="128, or more where a memory of a fixed size needs it",
    )
    store: str | None = text_field(
        None,
        "Memory store in which demonstrations stay, for later jobs: LanceDB folder or URI.",
        DECIDED_BY_SERVICE,
        MEMORY_STORE,
        DECIDED_BY_SERVICE,
        shown="inside --out, removed at the end",
    )
    workers: int | None = whole_field(
        None,
        "Workers, which encode demonstrations and answer items.",
        WORKERS,
        DECIDED_BY_SERVICE,
        shown=f"1; {IN_PROCESS}",
        most=MOST_WORKERS,
    )
    batch_items: int = whole_field(32, "Items that a worker gets at a time.", WORKERS)
    memory_tokens: int | None = whole_field(
        None,
        "Past tokens that an item may read.",
        MODEL_SETTING,
        DECIDED_BY_SERVICE,
        shown="the model's, or more if demonstrations need it",
        least=0,
    )

    @property
    def num_workers(self) -> int:
        return self.workers or (default_workers(self.threads) if self.address == "none" else 1)

    def run(self, console: Console) -> None:
        self.check_resume()
        if not self.resume:
            check_model(self.model)
        with loading(console):
            from pipelines.icl.console import print_result
            from pipelines.icl.job import IclJob, run_icl
            from pipelines.icl.task import load_task

        source = self.source(
            console, on_gpu=self.gpus > 0, resumed=self.resumed_folder, on_service=self.service is not None
        )
        job = from_options(
            IclJob,
            self,
            tasks=tuple(load_task(name, self.data) for name in self.tasks),
            out=self.folder,
            model=source,
            cluster=self.request_shape(),
            service=self.service_choice(source if self.model else None),
            workers=self.num_workers,
            threads=self.threads_of_each,
            shots=_numbers("--shots", self.shots),
            memory_shots=_numbers("--memory-shots", self.memory_shots),
            command=command_text(),
        )
        summary = run_icl(job, console)
        show_summary(summary, job.out, self.as_json, lambda console: print_result(console, summary, job.out))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    return parse_numbers(text, int, f"{option} needs numbers with commas between them, such as 0,4,20;")


icl = command(IclSpec)
