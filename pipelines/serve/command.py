"""`longmem service up|status|down`: pools that outlive a command, and that many jobs and clients share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from actors.config import ClusterShape
from longmem.errors import ConfigError
from longmem.system.redaction import redacted
from pipelines.command.command_line import (
    Durability,
    JobDtype,
    Placement,
    SearchEngine,
    exit_codes,
    num_cores,
)
from pipelines.command.console import open_console
from pipelines.command.interrupts import tidying
from pipelines.command.option_types import text_option
from pipelines.command.options import (
    Adapter,
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
    Placed,
    ReaderGpus,
    Readers,
    Search,
    SegmentTokens,
    SpecialTokens,
    StoreQuotaBytes,
    Stores,
    Threads,
    TopK,
    WindowBytes,
    model_source,
)

if TYPE_CHECKING:
    from actors.service.registry import ServiceState

STORE = "longmem-memory.lance"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="A long-lived service on a running Ray cluster: many jobs and clients share its workers and its memory.",
)

Name = Annotated[str, text_option(help="Name of the service.")]
Address = Annotated[str, text_option(help="A running Ray cluster: auto (the one on this machine), or its address.")]


@app.command()
def up(
    name: Name = "longmem",
    address: Address = "auto",
    model: Model = None,
    adapter: Adapter = None,
    store: Annotated[
        str, text_option(help="Memory store: LanceDB folder or URI. It stays when the service ends.")
    ] = STORE,
    store_quota_bytes: StoreQuotaBytes = None,
    durability: Durable = Durability.PROCESS,
    encoders: Encoders = 1,
    readers: Readers = 1,
    stores: Stores = 1,
    threads: Threads = None,
    encoder_gpus: EncoderGpus = 0.0,
    reader_gpus: ReaderGpus = 0.0,
    placement: Placed = Placement.PACK,
    cpu_share: CpuShare = 1.0,
    elastic: Elastic = False,
    window_bytes: WindowBytes = 2**30,
    segment_tokens: SegmentTokens = None,
    memory_tokens: MemoryTokens = None,
    top_k: TopK = None,
    chunk_tokens: ChunkTokens = None,
    kv_dtype: KvDtype = None,
    special_tokens: SpecialTokens = None,
    dtype: Dtype = JobDtype.FLOAT32,
    search: Search = SearchEngine.AUTO,
) -> None:
    """Start a service, and wait until its workers are ready. It ends with `longmem service down`.

    **Example:** `ray start --head`, then `longmem service up --store memory.lance --encoders 2 --readers 2`
    """
    console = open_console(stderr=True)
    with exit_codes(console):
        from actors.service.registry import Service, start_service
        from longmem.store.config import StoreSettings

        if threads is not None and threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {threads}")
        service = Service(
            name=name,
            source=model_source(
                model,
                dtype,
                search,
                console,
                adapter=adapter,
                on_gpu=reader_gpus > 0,
                encoders_on_gpu=encoder_gpus > 0,
                segment_tokens=segment_tokens,
                memory_tokens=memory_tokens,
                top_k=top_k,
                chunk_tokens=chunk_tokens,
                kv_dtype=kv_dtype,
                special_tokens=special_tokens,
            ),
            store=StoreSettings(
                store if "://" in store else str(Path(store).absolute()), durability.value, store_quota_bytes
            ),
            shape=ClusterShape(
                address=address,
                encoders=encoders,
                readers=readers,
                stores=stores,
                threads=threads or max(1, num_cores() // max(1, encoders + readers)),
                encoder_gpus=encoder_gpus,
                reader_gpus=reader_gpus,
                window_bytes=window_bytes,
                placement=placement.value,
                cpu_share=cpu_share,
                elastic=elastic,
            ),
        )
        with _joined(address, console):
            running, started = start_service(service, _teller(console))
        state = "is up" if started else f"runs already with these settings, since {_moment(running.since_s)}"
        open_console().print(
            f"service {name} {state}: {service.source.source}, memory in {redacted(service.store.uri)}", soft_wrap=True
        )
        open_console().print(f"use it with: longmem perplexity INPUT --service {name}", soft_wrap=True)


@app.command()
def status(
    name: Annotated[str | None, text_option(help="Only this service.", show_default="all")] = None,
    address: Address = "auto",
) -> None:
    """The services of a cluster, what they hold, and which of their workers give no sign of life.

    **Example:** `longmem service status`
    """
    console = open_console(stderr=True)
    with exit_codes(console):
        from actors.service.registry import list_services, service_state

        with _joined(address, console):
            states = list_services() if name is None else [service_state(name)]
        if not states:
            open_console().print("no service runs on this cluster; start one with `longmem service up`")
        for state in states:
            open_console().print(escape(_described(state)), soft_wrap=True)


@app.command()
def down(name: Name = "longmem", address: Address = "auto") -> None:
    """End a service: writes that have begun end, the store closes, all workers stop. What was stored stays.

    **Example:** `longmem service down --name longmem`
    """
    console = open_console(stderr=True)
    with exit_codes(console):
        from actors.service.registry import stop_service

        with _joined(address, console):
            ended = stop_service(name)
        open_console().print(f"service {name} is down; {len(ended)} actors have ended", soft_wrap=True)


@contextmanager
def _joined(address: str, console: Console) -> Iterator[None]:
    """Join a running cluster, and say which; this command never starts one, because it would end with the command."""
    from actors.cluster import join

    if address in ("none", "local"):
        raise ConfigError(
            f"a service needs a Ray cluster that outlives this command, not --address {address}; start one with "
            "`ray start --head`"
        )
    with tidying():
        connection = join(address, _teller(console))
        try:
            with connection.watch.explaining():
                yield
        finally:
            connection.close()


def _teller(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(escape(text), soft_wrap=True)


def _described(state: "ServiceState") -> str:
    service = state.service
    if service is None:
        lines = ["its start was interrupted, or goes on: nothing describes it"]
    else:
        shape = service.shape
        pools = f"{shape.encoders} encoders, {shape.stores} stores, {shape.readers} readers"
        lines = [
            f"up since {_moment(service.since_s)}",
            f"model: {service.source.source} ({service.source.dtype})",
            f"store: {redacted(service.store.uri)}",
            f"pools: {pools}, {shape.threads} threads each",
        ]
    lines += [f"{each}: {'silent' if each in state.unresponsive else 'alive'}" for each in state.workers]
    return "\n  ".join([f"service {state.name}", *lines])


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
