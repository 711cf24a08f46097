"""`longmem memory …`: look into a memory store, check it, tidy it. Names of documents are foreign text: they are shown
without Rich markup and without control characters, and `--json` escapes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from longmem.errors import ConfigError, MissingBlockError
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import IN_MEMORY, MemoryStore
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, SegmentInfo
from pipelines.command.command_line import EXIT_FAILED_DOCUMENTS, exit_codes
from pipelines.command.console import open_console, printable, say, say_json
from pipelines.command.option_types import real_option, text_argument, text_option

memory = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Look into a memory store, check it, tidy it."
)

StoreOption = Annotated[str, text_option("--store", help="Folder or URI of the memory store.")]
NamespaceOption = Annotated[str, text_option(help="Namespace of the document.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
DocumentArgument = Annotated[str, text_argument(help="Name of the document.")]


@memory.command("ls")
def list_documents(
    store: StoreOption,
    namespace: Annotated[str | None, text_option(help="Only this namespace.", show_default="all")] = None,
    as_json: JsonOption = False,
) -> None:
    """Documents of a store, with their segments, tokens and bytes.

    **Example:** `longmem memory ls --store runs/moby/memory.lance`
    """
    with _opened(store) as opened:
        found = [(key, opened.segments(key)) for key in opened.documents(namespace)]
        total = opened.num_bytes()
    if as_json:
        _print_json({"documents": [_described(key, infos) for key, infos in found], "bytes": total})
        return
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for title, side in (("namespace", "left"), ("document", "left"), ("segments", "right"), ("tokens", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    table.add_column("bytes", justify="right")
    for key, infos in found:
        described = _described(key, infos)
        numbers = (f"{described[name]:,}" for name in ("segments", "tokens", "bytes"))
        table.add_row(Text(printable(key.namespace)), Text(printable(key.document)), *numbers)
    console = open_console()
    console.print(table)
    console.print(f"{len(found):,} documents, {total:,} bytes (blocks that forks share count once)")


@memory.command()
def show(
    document: DocumentArgument,
    store: StoreOption,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    as_json: JsonOption = False,
) -> None:
    """One document: how much of it is stored, which segments are missing, and by which model it was written.

    **Example:** `longmem memory show moby-dick --store memory.lance`
    """
    key = DocumentKey(namespace, document)
    with _opened(store) as opened:
        infos = opened.segments(key)
        if not infos:
            raise _unknown(key, store)
        fingerprint = opened.fingerprint()
    assert fingerprint is not None, "a store with blocks has a fingerprint"
    described = {**_described(key, infos), "gaps": _gaps(infos), "fingerprint": vars(fingerprint)}
    if as_json:
        _print_json(described)
        return
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, value in described.items():
        if name == "fingerprint":
            continue
        shown = ", ".join(f"[{first}, {last})" for first, last in value) or "none" if name == "gaps" else value
        table.add_row(Text(name, style="dim"), Text(f"{shown:,}" if isinstance(shown, int) else printable(shown)))
    for name, value in vars(fingerprint).items():
        table.add_row(Text(name, style="dim"), Text(printable(str(value))))
    open_console().print(table)


@memory.command()
def verify(
    store: StoreOption,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Go back to the last good state and drop damaged blocks. Nobody else may have the store open.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every block and compare it with its checksum. With `--repair`, exit code 1 says that something was done.

    **Example:** `longmem memory verify --store memory.lance`
    """
    if not repair:
        with _opened(store) as opened:
            num_blocks = opened.verify()
        if as_json:
            _print_json({"blocks": num_blocks, "dropped": 0, "actions": []})
        else:
            say(f"{num_blocks:,} blocks read, all of them as written")
        return
    with exit_codes(open_console(stderr=True)):
        from longmem.store.lance.repair import recover

        report = recover(_checked(store))
    if as_json:
        _print_json({"blocks": report.num_blocks, "dropped": report.num_dropped, "actions": report.actions})
    else:
        for action in report.actions:
            say(f"repaired: {printable(action)}")
        say(f"{report.num_blocks:,} blocks read, all of them as written; {report.num_dropped:,} dropped")
    if report.actions:
        raise typer.Exit(EXIT_FAILED_DOCUMENTS)


@memory.command()
def compact(
    store: StoreOption,
    orphan_minutes: Annotated[
        float, real_option(help="Remove what nothing refers to when it is older; 0 only where no writer lives.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Rewrite the catalogue into few files and remove what dead writers left behind.

    **Example:** `longmem memory compact --store memory.lance`
    """
    with exit_codes(open_console(stderr=True)):
        from longmem.store.lance.store import LanceMemoryStore

        with LanceMemoryStore(_checked(store)) as opened:
            swept = opened.compact(orphan_minutes * 60)
    if as_json:
        _print_json({"files": swept.num_files, "tables": swept.num_tables, "bytes": swept.num_bytes})
        return
    say(
        f"removed {swept.num_files:,} temporary files and {swept.num_tables:,} orphaned tables, "
        f"{swept.num_bytes:,} bytes"
    )


@memory.command()
def fork(
    document: DocumentArgument,
    target: Annotated[str, text_argument(help="Name of the new document.")],
    store: StoreOption,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    to_namespace: Annotated[
        str | None, text_option(help="Namespace of the new document.", show_default="the same")
    ] = None,
) -> None:
    """A second document with the same memory. Nothing is copied, and neither sees what the other writes later.

    **Example:** `longmem memory fork moby-dick moby-dick-2 --store memory.lance`
    """
    source = DocumentKey(namespace, document)
    copy = DocumentKey(namespace if to_namespace is None else to_namespace, target)
    with _opened(store) as opened:
        num_blocks = opened.fork(source, copy)
    say(f"{printable(str(copy))} shares {num_blocks:,} blocks with {printable(str(source))}")


@memory.command("rm")
def remove(
    documents: Annotated[list[str], text_argument(metavar="DOCUMENT...", help="Names of documents.")],
    store: StoreOption,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget documents. Forks of them stay.

    **Example:** `longmem memory rm moby-dick --store memory.lance --yes`
    """
    keys = [DocumentKey(namespace, name) for name in documents]
    with _opened(store) as opened:
        held = {key: opened.segments(key) for key in keys}
        for key, infos in held.items():
            if not infos:
                raise _unknown(key, store)
        num_blocks = sum(len(infos) for infos in held.values())
        if not yes:
            names = ", ".join(printable(str(key)) for key in keys)
            typer.confirm(f"Forget {num_blocks:,} blocks of {names}?", abort=True)
        for key in keys:
            opened.delete(key)
    say(f"forgot {num_blocks:,} blocks of {len(keys):,} documents")


@contextmanager
def _opened(uri: str) -> Iterator[AbstractMemoryStore]:
    with exit_codes(open_console(stderr=True)), MemoryStore.open(_checked(uri)) as store:
        yield store


def _checked(uri: str) -> str:
    """Looking must not make an empty store out of a mistyped name."""
    if uri == IN_MEMORY:
        raise ConfigError(f"--store {IN_MEMORY} lives in the process that made it; name a folder or a URI")
    if "://" not in uri and not Path(uri).is_dir():
        raise ConfigError(f"--store {uri}: there is no such folder")
    return uri


def _described(key: DocumentKey, infos: list[SegmentInfo]) -> dict[str, Any]:
    return {
        "namespace": key.namespace,
        "document": key.document,
        "segments": len(infos),
        "tokens": sum(info.num_tokens for info in infos),
        "bytes": sum(info.num_bytes for info in infos),
    }


def _gaps(infos: list[SegmentInfo]) -> list[tuple[int, int]]:
    """Half-open intervals of segments that are missing before the last one stored: trimmed, or never written."""
    gaps, expected = [], 0
    for info in infos:
        if info.segment > expected:
            gaps.append((expected, info.segment))
        expected = info.segment + 1
    return gaps


def _unknown(key: DocumentKey, uri: str) -> MissingBlockError:
    return MissingBlockError(f"{uri} holds no document {key.document!r} in namespace {key.namespace!r}; see `ls`")


def _print_json(content: dict[str, Any]) -> None:
    say_json(content)
