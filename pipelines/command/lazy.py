# SPDX-License-Identifier: Apache-2.0
"""Commands that are imported when they are used: `longmem --help` shows the table, and loads none of them."""

from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import typer
import typer.core

from pipelines.command.command_line import LongMemGroup

MARKUP: Literal["markdown"] = "markdown"
"""Markup of every help text."""


@dataclass(frozen=True)
class LazyCommand:
    """Place of a command, and the line that the list of commands shows."""

    target: str
    """`module:name` of a function, or of a `typer.Typer` with subcommands."""
    help: str
    """First paragraph of the command's own help text, on one line; `tests/unit/pipelines/test_startup.py` compares."""

    def load(self, name: str) -> Any:
        """Import the command and return it as a command of `typer`, called `name`."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        parent = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        # with a callback, a parent of one command is a group too
        parent.callback()(_nothing)
        if isinstance(found, typer.Typer):
            parent.add_typer(found, name=name)
        else:
            parent.command(name)(found)
        group: Any = typer.main.get_command(parent)
        return group.commands[name]

    def placeholder(self, name: str) -> Any:
        """Return a command that has a name and a help text only, for a list of commands."""
        return typer.core.TyperCommand(name, help=self.help)


class LoadedOnUse(MutableMapping[str, Any]):
    """Commands by name, in the order of the table; each is imported when it is first read."""

    def __init__(self, table: Mapping[str, LazyCommand], more: Mapping[str, Any]) -> None:
        """`more`: commands that are loaded already, listed after the table."""
        self._table = table
        self._loaded = dict(more)

    def placeholders(self) -> dict[str, Any]:
        """Return what a list of commands shows, without an import."""
        listed = {name: command.placeholder(name) for name, command in self._table.items()}
        return {**listed, **{name: command for name, command in self._loaded.items() if name not in listed}}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._table[name].load(name)
        return self._loaded[name]

    def get(self, name: str, default: Any = None) -> Any:
        # the inherited one takes a KeyError within the import for an unknown command
        if name not in self:
            return default
        return self[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a command cannot be removed")

    def __contains__(self, name: object) -> bool:
        # the inherited one would import the command
        return name in self._table or name in self._loaded

    def __iter__(self) -> Iterator[str]:
        yield from self._table
        yield from (name for name in self._loaded if name not in self._table)

    def __len__(self) -> int:
        return len(self._table.keys() | self._loaded.keys())


class LazyGroup(LongMemGroup):
    """Root of a command line whose subclass names its commands in `table`."""

    table: ClassVar[Mapping[str, LazyCommand]] = {}

    def __init__(self, *, commands: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._lazy = LoadedOnUse(self.table, commands or {})
        self.commands = self._lazy

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super(LazyGroup, self._listing()).format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        # a shell completes names only: a command is imported when its options are completed
        listed = copy(ctx)
        listed.command = self._listing()
        return super().shell_complete(listed, incomplete)

    def _listing(self) -> "LazyGroup":
        """Return a copy whose commands have a name and a help text only."""
        listing = copy(self)
        listing.commands = self._lazy.placeholders()
        return listing


def _nothing() -> None:
    """Do nothing: the callback of a parent that is never called."""
