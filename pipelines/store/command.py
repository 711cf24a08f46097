# SPDX-License-Identifier: Apache-2.0
"""`longmem memory …`: look into a memory store, check it, tidy it. Names of documents are foreign text: they are shown
without Rich markup and without control characters, and `--json` escapes them."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longmem.errors import ConfigError, MissingBlockError
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import IN_MEMORY, MemoryStore
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, SegmentInfo
from longmem.wording import counted
from pipelines.command.command_line import EXIT_FAILED_DOCUMENTS
from pipelines.command.console import open_console, printable, say, say_json
from pipelines.command.fields import REQUIRED, flag_field, real_field, text_argument_field, text_field
from pipelines.command.spec import CommandSpec, command

memory = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Look into a memory store, check it, tidy it."
)


@dataclass(frozen=True, kw_only=True)
class StoreCommandOptions:
    """Store that a command looks into."""

    store: str = text_field(REQUIRED, "Folder or URI of the memory store.")


@dataclass(frozen=True, kw_only=True)
class JsonOption:
    """Form of the output."""

    as_json: bool = flag_field("One JSON object on stdout.", names=("--json",))


@dataclass(frozen=True, kw_only=True)
class NamespaceOption:
    """Namespace of the documents."""

    namespace: str = text_field(DEFAULT_NAMESPACE, "Namespace of the document.")


@dataclass(frozen=True, kw_only=True)
class ListSpec(JsonOption, StoreCommandOptions, CommandSpec):
    """Documents of a store, with their segments, tokens and bytes.

    **Example:** `longmem memory ls --store runs/moby/memory.lance`
    """

    namespace: str | None = text_field(None, "Only this namespace.", shown="all")

    def run(self, console: Console) -> None:  # noqa: ARG002 - prints results only
        with opened_store(self.store) as opened:
            found = [(key, opened.segments(key)) for key in opened.documents(self.namespace)]
            total = opened.num_bytes()
        if self.as_json:
            say_json({"documents": [_described(key, infos) for key, infos in found], "bytes": total})
            return
        table = Table(box=None, header_style="dim", padding=(0, 2))
        for title, side in (("namespace", "left"), ("document", "left"), ("segments", "right"), ("tokens", "right")):
            # names are folded, not cut: they are what the other commands take
            table.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
        table.add_column("bytes", justify="right")
        for key, infos in found:
            described = _described(key, infos)
            numbers = (f"{described[name]:,}" for name in ("segments", "tokens", "bytes"))
            table.add_row(Text(printable(key.namespace)), Text(printable(key.document)), *numbers)
        results = open_console()
        results.print(table)
        results.print(f"{counted(len(found), 'document')}, {total:,} bytes (blocks that forks share count once)")


@dataclass(frozen=True, kw_only=True)
class ShowSpec(JsonOption, NamespaceOption, StoreCommandOptions, CommandSpec):
    """One document: how much of it is stored, which segments are missing, and by which model it was written.

    **Example:** `longmem memory show moby-dick --store memory.lance`
    """

    document: str = text_argument_field(REQUIRED, "Name of the document.")

    def run(self, console: Console) -> None:  # noqa: ARG002 - prints results only
        key = DocumentKey(self.namespace, self.document)
        with opened_store(self.store) as opened:
            infos = opened.segments(key)
            if not infos:
                raise unknown_document(key, self.store)
            fingerprint = opened.fingerprint()
        assert fingerprint is not None, "a store with blocks has a fingerprint"
        described = {**_described(key, infos), "gaps": _gaps(infos), "fingerprint": vars(fingerprint)}
        if self.as_json:
            say_json(described)
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


@dataclass(frozen=True, kw_only=True)
class VerifySpec(JsonOption, StoreCommandOptions, CommandSpec):
    """Read every block and compare it with its checksum. With `--repair`, exit code 1 says that something was done.

    **Example:** `longmem memory verify --store memory.lance`
    """

    repair: bool = flag_field(
        "Go back to the last good state and drop damaged blocks. Nobody else may have the store open."
    )

    def run(self, console: Console) -> int:  # noqa: ARG002 - prints results only
        if not self.repair:
            with opened_store(self.store) as opened:
                num_blocks, num_dropped, actions = opened.verify(), 0, []
        else:
            from longmem.store.lance.repair import recover

            report = recover(_checked(self.store))
            num_blocks, num_dropped, actions = report.num_blocks, report.num_dropped, report.actions
        if self.as_json:
            say_json({"blocks": num_blocks, "dropped": num_dropped, "actions": actions})
        else:
            for action in actions:
                say(f"repaired: {printable(action)}")
            dropped = f"; {num_dropped:,} dropped" if self.repair else ""
            say(f"{counted(num_blocks, 'block')} read, as written{dropped}")
        return EXIT_FAILED_DOCUMENTS if actions else 0


@dataclass(frozen=True, kw_only=True)
class CompactSpec(JsonOption, StoreCommandOptions, CommandSpec):
    """Rewrite the catalogue into few files and remove what dead writers left behind.

    **Example:** `longmem memory compact --store memory.lance`
    """

    orphan_minutes: float = real_field(
        60.0, "Remove what nothing refers to when it is older; 0 only where no writer lives."
    )

    def run(self, console: Console) -> None:  # noqa: ARG002 - prints results only
        from longmem.store.lance.store import LanceMemoryStore

        with LanceMemoryStore(_checked(self.store)) as opened:
            swept = opened.compact(self.orphan_minutes * 60)
        if self.as_json:
            say_json({"files": swept.num_files, "tables": swept.num_tables, "bytes": swept.num_bytes})
            return
        say(
            f"removed {counted(swept.num_files, 'temporary file')} and {counted(swept.num_tables, 'orphaned table')}, "
            f"{swept.num_bytes:,} bytes"
        )


@dataclass(frozen=True, kw_only=True)
class ForkSpec(JsonOption, NamespaceOption, StoreCommandOptions, CommandSpec):
    """A second document with the same memory. Nothing is copied, and neither sees what the other writes later.

    **Example:** `longmem memory fork moby-dick moby-dick-2 --store memory.lance`
    """

    document: str = text_argument_field(REQUIRED, "Name of the document.")
    target: str = text_argument_field(REQUIRED, "Name of the new document.")
    to_namespace: str | None = text_field(None, "Namespace of the new document.", shown="the same")

    def run(self, console: Console) -> None:  # noqa: ARG002 - prints results only
        source = DocumentKey(self.namespace, self.document)
        copy = DocumentKey(self.to_namespace or self.namespace, self.target)
        with opened_store(self.store) as opened:
            num_blocks = opened.fork(source, copy)
        if self.as_json:
            say_json({"source": vars(source), "target": vars(copy), "blocks": num_blocks})
            return
        say(f"{printable(str(copy))} shares {counted(num_blocks, 'block')} with {printable(str(source))}")


@dataclass(frozen=True, kw_only=True)
class RemoveSpec(JsonOption, NamespaceOption, StoreCommandOptions, CommandSpec):
    """Forget documents. Forks of them stay.

    **Example:** `longmem memory rm moby-dick --store memory.lance --yes`
    """

    documents: list[str] = text_argument_field(REQUIRED, "Names of documents.", "DOCUMENT...")
    yes: bool = flag_field("Do not ask.")

    def run(self, console: Console) -> None:  # noqa: ARG002 - prints results only
        keys = [DocumentKey(self.namespace, name) for name in self.documents]
        with opened_store(self.store) as opened:
            held = {key: opened.segments(key) for key in keys}
            for key, infos in held.items():
                if not infos:
                    raise unknown_document(key, self.store)
            num_blocks = sum(len(infos) for infos in held.values())
            if not self.yes:
                names = ", ".join(printable(str(key)) for key in keys)
                typer.confirm(f"Forget {counted(num_blocks, 'block')} of {names}?", abort=True, err=self.as_json)
            for key in keys:
                opened.delete(key)
        if self.as_json:
            say_json({"documents": [vars(key) for key in keys], "blocks": num_blocks})
            return
        say(f"forgot {counted(num_blocks, 'block')} of {counted(len(keys), 'document')}")


memory.command("ls")(command(ListSpec))
memory.command("show")(command(ShowSpec))
memory.command("verify")(command(VerifySpec))
memory.command("compact")(command(CompactSpec))
memory.command("fork")(command(ForkSpec))
memory.command("rm")(command(RemoveSpec))


@contextmanager
def opened_store(uri: str) -> Iterator[AbstractMemoryStore]:
    """Open an existing store. Raises ConfigError for a folder that does not exist."""
    with MemoryStore.open(_checked(uri)) as store:
        yield store


def _checked(uri: str) -> str:
    """Looking must not make an empty store out of a mistyped name."""
    if uri == IN_MEMORY:
        raise ConfigError(f"--store {IN_MEMORY} lives in the process that made it; name a folder or a URI")
    if "://" not in uri and not Path(uri).is_dir():
        found = "is a file; a memory store is a folder" if Path(uri).exists() else "there is no such folder"
        raise ConfigError(f"--store {uri}: {found}")
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


def unknown_document(key: DocumentKey, uri: str) -> MissingBlockError:
    """Return the error of a document that a store does not hold."""
    return MissingBlockError(
        f"{uri} holds no document {key.document!r} in namespace {key.namespace!r}; its documents are listed by: "
        f"{shlex.join(['longmem', 'memory', 'ls', '--store', uri])}"
    )
