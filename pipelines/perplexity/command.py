"""`longmem perplexity`: options become one checked job."""

from typing import Annotated

import typer

from actors.config import ClusterShape
from actors.executor.timeouts import Timeouts
from longmem.errors import ConfigError
from pipelines.command.command_line import (
    EXIT_FAILED_DOCUMENTS,
    Durability,
    JobDtype,
    Placement,
    Retention,
    SearchEngine,
    check_inputs,
    command_text,
    exit_codes,
    num_cores,
    refuse_options,
    say_if_finished,
)
from pipelines.command.console import open_console
from pipelines.command.option_types import real_option, text_argument, text_option, whole_option
from pipelines.command.options import (
    Adapter,
    Address,
    ChunkTokens,
    CpuShare,
    Dtype,
    Durable,
    Elastic,
    EncoderGpus,
    Encoders,
    KvDtype,
    MemoryTokens,
    Model,
    NoMemory,
    Out,
    Placed,
    ReaderGpus,
    Readers,
    Resume,
    Search,
    SegmentTokens,
    SpecialTokens,
    StoreQuotaBytes,
    Stores,
    Threads,
    TopK,
    WindowBytes,
    check_resume,
    model_source,
    output_folder,
)

LEAST_OBJECT_STORE_BYTES = 75 * 2**20
"""Ray starts with no less."""
OF_THE_SERVICE = (
    *("encoders", "readers", "stores", "threads", "encoder_gpus", "reader_gpus", "placement", "cpu_share", "elastic"),
    *("window_bytes", "object_store_bytes", "segment_tokens", "memory_tokens", "top_k", "chunk_tokens", "kv_dtype"),
    "special_tokens",
    *("no_memory", "store", "durability", "store_quota_bytes", "dtype", "search"),
)
"""Options that a job on a service cannot choose."""


def perplexity(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        text_argument(
            metavar="INPUT",
            show_default=False,
            help=".txt, .jsonl, .ndjson, .json (`text`, optional `id`; also .gz, .zst, .bz2, .xz), .parquet, or a "
            "folder, read whole; local or an fsspec URI. Without any: the Python language reference.",
        ),
    ] = None,
    model: Model = None,
    adapter: Adapter = None,
    out: Out = None,
    resume: Resume = False,
    address: Address = "auto",
    service: Annotated[
        str | None,
        text_option(help="Run on the workers, model and memory of this service.", show_default="workers of its own"),
    ] = None,
    encoders: Encoders = 1,
    readers: Readers = 1,
    stores: Stores = 1,
    threads: Threads = None,
    encoder_gpus: EncoderGpus = 0.0,
    reader_gpus: ReaderGpus = 0.0,
    placement: Placed = Placement.PACK,
    cpu_share: CpuShare = 1.0,
    elastic: Elastic = False,
    max_tries: Annotated[
        int, whole_option(help="Set a document aside when one of its segments has ended its worker this often.")
    ] = 5,
    task_deadline_s: Annotated[
        float,
        real_option(help="Seconds one segment may take; then its worker is killed and it is tried again.", above=True),
    ] = 1800.0,
    window_bytes: WindowBytes = 2**30,
    object_store_bytes: Annotated[
        int,
        whole_option(help="Bytes of Ray's object store, where Ray is started here.", least=LEAST_OBJECT_STORE_BYTES),
    ] = 2**30,
    segment_tokens: SegmentTokens = None,
    memory_tokens: MemoryTokens = None,
    top_k: TopK = None,
    chunk_tokens: ChunkTokens = None,
    kv_dtype: KvDtype = None,
    special_tokens: SpecialTokens = None,
    no_memory: NoMemory = False,
    store: Annotated[
        str | None,
        text_option(
            help="Memory store: LanceDB folder or URI, or memory:// (with --address none).", show_default="inside --out"
        ),
    ] = None,
    retention: Annotated[
        Retention | None,
        typer.Option(
            help="How long the store keeps blocks: while a window may reach them (bounded disk, however long the "
            "document), while their document is scored, or forever.",
            show_default="document",
        ),
    ] = None,
    keep_memory: Annotated[bool, typer.Option("--keep-memory", help="The same as --retention forever.")] = False,
    store_quota_bytes: StoreQuotaBytes = None,
    durability: Durable = Durability.PROCESS,
    namespace: Annotated[
        str | None, text_option(help="Where kept documents are filed.", show_default="default")
    ] = None,
    limit_documents: Annotated[
        int | None, whole_option(help="Score only the first N documents.", show_default=False)
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also write tokens.parquet: every token's log-probabilities.")
    ] = False,
    dtype: Dtype = JobDtype.FLOAT32,
    search: Search = SearchEngine.AUTO,
    max_in_flight_segments: Annotated[
        int | None,
        whole_option(help="Encoded segments that may wait for readers.", show_default="8 per worker, 16 in process"),
    ] = None,
    max_in_flight_bytes: Annotated[int, whole_option(help="Bytes of them.")] = 2**30,
) -> None:
    """Perplexity of long documents, with memory and without.

    **Example:** `longmem perplexity moby-dick.txt --out runs/moby`
    """
    console = open_console(stderr=True)
    folder = output_folder(out)
    workers = None if address == "none" else encoders + readers
    with exit_codes(console, folder):
        check_resume(resume, out)
        check_inputs(*inputs or ())
        # torch and transformers take seconds to load: not for --help, and not outside of what handles Ctrl-C
        from longmem.runtime.scheduler import Limits
        from pipelines.job.executors import default_in_flight
        from pipelines.job.service import ServiceChoice
        from pipelines.perplexity.console import print_result
        from pipelines.perplexity.job import PerplexityJob, run_job

        if keep_memory and retention not in (None, Retention.FOREVER):
            raise ConfigError(f"--keep-memory and --retention {retention} contradict each other; give one of them")
        kept = Retention.FOREVER if keep_memory else retention or Retention.DOCUMENT
        if threads is not None and threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        if service is not None:
            refuse_options(context, OF_THE_SERVICE, f"service {service!r} decides that, for all its jobs; leave it out")
        per_worker = threads or max(1, num_cores() // (workers or 1))
        source = model_source(
            model,
            dtype,
            search,
            console,
            adapter=adapter,
            on_gpu=reader_gpus > 0,
            encoders_on_gpu=encoder_gpus > 0,
            no_memory=no_memory,
            segment_tokens=segment_tokens,
            memory_tokens=memory_tokens,
            top_k=top_k,
            chunk_tokens=chunk_tokens,
            kv_dtype=kv_dtype,
            special_tokens=special_tokens,
            inputs=inputs or (),
        )
        job = PerplexityJob(
            inputs=tuple(inputs or ()),
            out=folder,
            model=source,
            service=None
            if service is None
            else ServiceChoice(
                name=service,
                address=address,
                offered=source if model else None,
                limits_given=max_in_flight_segments is not None,
            ),
            cluster=None
            if address == "none"
            else ClusterShape(
                address=address,
                encoders=encoders,
                readers=readers,
                stores=stores,
                threads=per_worker,
                encoder_gpus=encoder_gpus,
                reader_gpus=reader_gpus,
                window_bytes=window_bytes,
                object_store_bytes=object_store_bytes,
                placement=placement.value,
                cpu_share=cpu_share,
                elastic=elastic,
                timeouts=Timeouts(max_tries=max_tries, task_s=task_deadline_s),
            ),
            threads=per_worker,
            threads_given=threads is not None,
            limits=Limits(
                default_in_flight(workers) if max_in_flight_segments is None else max_in_flight_segments,
                max_in_flight_bytes,
            ),
            store=store,
            namespace=namespace,
            retention=kept.value,
            durability=durability.value,
            store_quota_bytes=store_quota_bytes,
            keep_tokens=tokens,
            write_memory=kept == Retention.FOREVER or not no_memory,
            limit_documents=limit_documents,
            resume=resume,
            command=command_text(),
        )
        summary = run_job(job, console)
        if not say_if_finished(summary, job.out):
            print_result(open_console(), summary, job.out)
    if summary["counts"]["failed_documents"]:
        raise typer.Exit(EXIT_FAILED_DOCUMENTS)
