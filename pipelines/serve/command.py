# SPDX-License-Identifier: Apache-2.0
"""`longmem service up|status|down`: pools that outlive a command, and that many jobs and clients share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from longmem.errors import ConfigError
from longmem.system.redaction import redacted
from pipelines.command.command_line import check_model
from pipelines.command.console import open_console, say_json
from pipelines.command.fields import MEMORY_STORE, flag_field, text_field
from pipelines.command.interrupts import tidying
from pipelines.command.options import ClusterOptions, StoredModelOptions, StoreOptions
from pipelines.command.spec import CommandSpec, command

if TYPE_CHECKING:
    from actors.service.registry import Service, ServiceState

STORE = "longmem-memory.lance"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="A long-lived service on a running Ray cluster: many jobs and clients share its workers and its memory.",
)


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Cluster of a service."""

    address: str = text_field("auto", "A running Ray cluster: auto (the one on this machine), or its address.")
    as_json: bool = flag_field("Print one JSON object.", names=("--json",))


@dataclass(frozen=True, kw_only=True)
class NamedServiceOptions(ServiceOptions):
    """One service of a cluster."""

    name: str = text_field("longmem", "Name of the service.")


@dataclass(frozen=True, kw_only=True)
class UpSpec(StoreOptions, ClusterOptions, StoredModelOptions, NamedServiceOptions, CommandSpec):
    """Start a service, and wait until its workers are ready. It ends with `longmem service down`.

    **Example:** `ray start --head`, then `longmem service up --store memory.lance --encoders 2 --readers 2`
    """

    store: str = text_field(STORE, "Memory store: LanceDB folder or URI. It stays when the service ends.", MEMORY_STORE)

    def run(self, console: Console) -> None:
        check_model(self.model)
        from actors.service.registry import Service, start_service
        from longmem.store.config import StoreSettings

        uri = self.store if "://" in self.store else str(Path(self.store).absolute())
        service = Service(
            name=self.name,
            source=self.source(console, on_gpu=self.reader_gpus > 0, encoders_on_gpu=self.encoder_gpus > 0),
            store=StoreSettings(uri, self.durability, self.store_quota_bytes),
            shape=self.shape(),
        )
        with _joined(self.address, console):
            running, started = start_service(service, _teller(console))
        if self.as_json:
            say_json({"started": started, **_as_json(running)})
            return
        state = "is up" if started else f"runs already with these settings, since {_moment(running.since_s)}"
        model, memory = service.source.source, redacted(service.store.uri)
        open_console().print(f"service {self.name} {state}: {model}, memory in {memory}", soft_wrap=True)
        open_console().print(f"use it with: longmem perplexity INPUT --service {self.name}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class ServiceStatusSpec(ServiceOptions, CommandSpec):
    """The services of a cluster, what they hold, and which of their workers give no sign of life.

    **Example:** `longmem service status`
    """

    name: str | None = text_field(None, "Only this service.", shown="all")

    def run(self, console: Console) -> None:
        from actors.service.registry import list_services, service_state

        with _joined(self.address, console):
            states = list_services() if self.name is None else [service_state(self.name)]
        if self.as_json:
            say_json({"services": [_state_as_json(state) for state in states]}, indent=2)
            return
        if not states:
            open_console().print("no service runs on this cluster; start one with `longmem service up`")
        for state in states:
            open_console().print(escape(_described(state)), soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class DownSpec(NamedServiceOptions, CommandSpec):
    """End a service: writes that have begun end, the store closes, all workers stop. What was stored stays.

    **Example:** `longmem service down --name longmem`
    """

    def run(self, console: Console) -> None:
        from actors.service.registry import stop_service

        with _joined(self.address, console):
            ended = stop_service(self.name)
        if self.as_json:
            say_json({"name": self.name, "ended": [str(each) for each in ended]})
            return
        open_console().print(f"service {self.name} is down; {len(ended)} actors have ended", soft_wrap=True)


app.command("up")(command(UpSpec))
app.command("status")(command(ServiceStatusSpec))
app.command("down")(command(DownSpec))


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


def _as_json(service: "Service") -> dict[str, Any]:
    shape = service.shape
    return {
        "name": service.name,
        "since": _moment(service.since_s),
        "model": service.source.source,
        "dtype": service.source.dtype,
        "store": service.store.uri,
        "encoders": shape.encoders,
        "stores": shape.stores,
        "readers": shape.readers,
        "threads": shape.threads,
    }


def _state_as_json(state: "ServiceState") -> dict[str, Any]:
    described = {"name": state.name} if state.service is None else _as_json(state.service)
    workers = [{"name": each, "alive": each not in state.unresponsive} for each in state.workers]
    return {**described, "complete": state.service is not None, "workers": workers}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
