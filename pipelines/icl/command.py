"""`longmem icl`: options become one checked job."""

from pathlib import Path
from typing import Annotated

from actors.config import ClusterShape
from longmem.errors import ConfigError
from pipelines.command.command_line import (
    JobDtype,
    SearchEngine,
    command_text,
    exit_codes,
    num_cores,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import (
    MOST_WORKERS,
    path_option,
    real_option,
    text_argument,
    text_option,
    whole_option,
)
from pipelines.command.options import (
    Adapter,
    Address,
    ChunkTokens,
    Dtype,
    KvDtype,
    Model,
    Out,
    Resume,
    Search,
    SegmentTokens,
    SpecialTokens,
    Stores,
    Threads,
    TopK,
    WindowBytes,
    check_resume,
    model_source,
    output_folder,
)


def icl(
    tasks: Annotated[
        list[str],
        text_argument(
            metavar="TASK...",
            show_default=False,
            help="sst2, mr, subj, sst5, mpqa, trec, squad (their files are in --data), or the path of a task's .toml.",
        ),
    ],
    data: Annotated[
        Path | None, path_option(help="Folder with the tasks' files.", show_default="that of a task's own .toml")
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    out: Out = None,
    resume: Resume = False,
    shots: Annotated[str, text_option(help="Demonstrations in context: numbers with commas.")] = "0,4,20",
    memory_shots: Annotated[str, text_option(help="Demonstrations in memory: numbers with commas.")] = "0,20,200,2000",
    seeds: Annotated[int, whole_option(help="Draws of demonstrations; each has an order of its own.")] = 6,
    limit_items: Annotated[
        int | None, whole_option(help="Items of each task, drawn once for all cells.", show_default="all")
    ] = None,
    store: Annotated[
        str | None,
        text_option(
            help="Memory store in which demonstrations stay, for later jobs: LanceDB folder or URI.",
            show_default="inside --out, removed at the end",
        ),
    ] = None,
    address: Address = "auto",
    workers: Annotated[
        int, whole_option(help="Workers, which encode demonstrations and answer items.", most=MOST_WORKERS)
    ] = 1,
    stores: Stores = 1,
    threads: Threads = None,
    gpus: Annotated[float, real_option(help="GPU share of each worker.", most=64)] = 0.0,
    batch_items: Annotated[int, whole_option(help="Items that a worker gets at a time.")] = 32,
    window_bytes: WindowBytes = 2**30,
    segment_tokens: SegmentTokens = None,
    memory_tokens: Annotated[
        int | None,
        whole_option(
            help="Past tokens that an item may read.",
            show_default="the model's, or more if demonstrations need it",
            least=0,
        ),
    ] = None,
    top_k: TopK = None,
    chunk_tokens: ChunkTokens = None,
    kv_dtype: KvDtype = None,
    special_tokens: SpecialTokens = None,
    dtype: Dtype = JobDtype.FLOAT32,
    search: Search = SearchEngine.AUTO,
) -> None:
    """Many-shot in-context learning: demonstrations in context, in memory, and both.

    Demonstrations are written to the memory once; all items, on all workers, read them there.

    **Example:** `longmem icl sst2 trec --data icl/ --limit-items 200 --out runs/icl`
    """
    console = open_console(stderr=True)
    folder = output_folder(out)
    with exit_codes(console, folder):
        from pipelines.icl.console import print_result
        from pipelines.icl.job import IclJob, run_icl
        from pipelines.icl.task import load_task

        check_resume(resume, out)
        if threads is not None and threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        if workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {workers}")
        per_worker = threads or max(1, num_cores() // (1 if address == "none" else workers))
        job = IclJob(
            tasks=tuple(load_task(name, data) for name in tasks),
            out=folder,
            model=model_source(
                model,
                dtype,
                search,
                console,
                adapter=adapter,
                on_gpu=gpus > 0,
                segment_tokens=segment_tokens,
                memory_tokens=memory_tokens,
                top_k=top_k,
                chunk_tokens=chunk_tokens,
                kv_dtype=kv_dtype,
                special_tokens=special_tokens,
            ),
            cluster=None
            if address == "none"
            else ClusterShape(
                address=address,
                encoders=workers,
                readers=0,
                stores=stores,
                threads=per_worker,
                encoder_gpus=gpus,
                window_bytes=window_bytes,
            ),
            threads=per_worker,
            shots=_numbers("--shots", shots),
            memory_shots=_numbers("--memory-shots", memory_shots),
            seeds=seeds,
            limit_items=limit_items,
            batch_items=batch_items,
            store=store,
            resume=resume,
            command=command_text(),
        )
        summary = run_icl(job, console)
        if not say_if_finished(summary, folder):
            print_result(open_console(), summary, folder)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} needs numbers with commas between them, such as 0,4,20; got {text!r}") from None
