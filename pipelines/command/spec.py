# SPDX-License-Identifier: Apache-2.0
"""Commands made from dataclasses: each option is one field (`pipelines.command.fields`).

A spec class lists the options of one command, inherits groups of them (`pipelines.command.options`) and carries the
command out in `run`. Its docstring is the help. Adding an option takes one field and the code that reads it.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.models import OptionInfo, ParameterInfo

from pipelines.command.command_line import exit_codes
from pipelines.command.console import Detail, open_console
from pipelines.command.fields import HelpPanel, OptionField


@dataclass(frozen=True, kw_only=True)
class CommandSpec(ABC):
    """Options and arguments of one command, as the user gave them."""

    given: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of the fields whose value comes from the user, not from a default."""
    begun_s: float = field(default_factory=monotonic, repr=False, compare=False)
    """Time at which the command began, of the monotonic clock."""

    @property
    def resumable_folder(self) -> Path | None:
        """Folder of a job that continues after an interruption, named in the message; None for other commands."""
        return None

    @property
    def detail(self) -> Detail:
        """Amount of messages and progress that the command prints."""
        return "normal"

    @abstractmethod
    def run(self, console: Console) -> int | None:
        """Carry out the command; `console` takes messages and progress. Return the exit code, None for 0.

        Modules that load torch, Ray or LanceDB are imported here, because `--help` must not wait for them.
        """


def command(spec: type[CommandSpec]) -> Callable[..., None]:
    """Return a function that Typer takes as a command; its name is that of the class, without `Spec`.

    The function makes an instance from the command line and runs it; errors become one line and an exit code.
    """

    def run_spec(context: typer.Context, **values: Any) -> None:
        # the script gives the time at which it began, before it imported this
        begun_s = monotonic() if context.obj is None else context.obj
        sources = {name: context.get_parameter_source(name) for name in values}
        given = frozenset(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")
        made = spec(given=given, begun_s=begun_s, **values)
        # errors are printed by a quiet command too
        with exit_codes(open_console(stderr=True), made.resumable_folder):
            console = open_console(stderr=True, detail=made.detail)
            code = made.run(console)
            if made.resumable_folder is not None:
                console.print(f"the command took {monotonic() - begun_s:,.1f} s, start-up included", soft_wrap=True)
        if code:
            raise typer.Exit(code)

    run_spec.__name__ = run_spec.__qualname__ = spec.__name__.removesuffix("Spec").lower()
    run_spec.__module__, run_spec.__doc__ = spec.__module__, spec.__doc__
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run_spec.__signature__ = inspect.Signature([context, *_parameters(spec)])  # type: ignore[attr-defined]
    return run_spec


_NO_OPTIONS = {each.name for each in fields(CommandSpec)}
"""Fields of every command that are no options."""


def _parameters(spec: type[CommandSpec]) -> list[inspect.Parameter]:
    """Return one parameter per option; a field without a default is required."""
    return [_parameter(spec, each) for each in fields(spec) if each.name not in _NO_OPTIONS]


def _parameter(spec: type, declared: "Field[Any]") -> inspect.Parameter:
    kind: Any = declared.type
    default = inspect.Parameter.empty if declared.default is MISSING else declared.default
    annotation = Annotated[kind, _info(spec, declared)]
    return inspect.Parameter(declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _info(spec: type, declared: "Field[Any]") -> ParameterInfo:
    """Return the description of an option, with its heading. Raise TypeError for a field that is not an option."""
    option: OptionField | None = declared.metadata.get("option")
    if option is None:
        raise TypeError(f"{spec.__name__}.{declared.name} must be made by a function of pipelines.command.fields")
    info = copy(option.info)
    if panel := option.panel or _panel_of_group(spec, declared.name):
        info.rich_help_panel = panel.title
    if declared.type is bool and isinstance(info, OptionInfo) and info.default is ...:
        # without a name Typer would add the flag --no-NAME
        info.param_decls = (f"--{declared.name.replace('_', '-')}",)
    return info


def _panel_of_group(spec: type, name: str) -> HelpPanel | None:
    """Return the heading of the group that first declares an option."""
    owner = next(each for each in reversed(spec.__mro__) if name in inspect.get_annotations(each))
    return None if issubclass(owner, CommandSpec) else getattr(owner, "PANEL", None)
