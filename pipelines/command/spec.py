"""Commands made from dataclasses: each option is one field, whose annotation gives its kind, its help and its marks.

A spec class lists the options of one command, inherits groups of them (`pipelines.command.options`) and carries the
command out in `run`. Its docstring is the help. Adding an option takes one field and the code that reads it.
"""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from typer.models import ParameterInfo

from longmem.errors import ConfigError
from pipelines.command.command_line import exit_codes
from pipelines.command.console import open_console


@dataclass(frozen=True)
class Mark:
    """A property of an option beside its kind, written into the annotation of its field."""

    meaning: str


@dataclass(frozen=True)
class Panel:
    """A heading of the help, as the `PANEL` of a group of options or in the annotation of one field."""

    title: str


DECIDED_BY_SERVICE = Mark("A job on a service cannot choose it: the service decides it for all of its jobs.")
MODEL_SETTING = Mark("A field of LongMemConfig with the same name.")

MODEL, WORKERS, MEMORY_STORE = Panel("Model"), Panel("Workers"), Panel("Memory store")


@dataclass(frozen=True, kw_only=True)
class CommandSpec:
    """Options and arguments of one command, as the user gave them."""

    given: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of the fields whose value comes from the user, not from a default."""

    @property
    def resumable_folder(self) -> Path | None:
        """Folder of a job that continues after an interruption, named in the message; None for other commands."""
        return None

    def run(self, console: Console) -> int | None:
        """Carry out the command; `console` takes messages and progress. Return the exit code, None for 0.

        Modules that load torch, Ray or LanceDB are imported here, because `--help` must not wait for them.
        """
        raise NotImplementedError

    def refuse_given(self, mark: Mark, reason: str) -> None:
        """Raise ConfigError when the user gave any option that carries `mark`."""
        refused = [f"--{name.replace('_', '-')}" for name in marked_fields(type(self), mark) if name in self.given]
        if refused:
            raise ConfigError(f"{', '.join(refused)}: {reason}")


def marked_fields(spec: type, mark: Mark) -> list[str]:
    """Return the names of the fields of a spec class, or of a group of options, that carry `mark`."""
    return [name for name, annotation in _annotations(spec).items() if mark in get_args(annotation)[1:]]


def command(spec: type[CommandSpec]) -> Callable[..., None]:
    """Return a function that Typer takes as a command; its name is that of the class, without `Spec`.

    The function makes an instance from the command line and runs it; errors become one line and an exit code.
    """

    def run_spec(context: typer.Context, **values: Any) -> None:
        sources = {name: context.get_parameter_source(name) for name in values}
        given = frozenset(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")
        made = spec(given=given, **values)
        console = open_console(stderr=True)
        with exit_codes(console, made.resumable_folder):
            code = made.run(console)
        if code:
            raise typer.Exit(code)

    run_spec.__name__ = run_spec.__qualname__ = spec.__name__.removesuffix("Spec").lower()
    run_spec.__module__, run_spec.__doc__ = spec.__module__, spec.__doc__
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run_spec.__signature__ = inspect.Signature([context, *_parameters(spec)])  # type: ignore[attr-defined]
    return run_spec


def _annotations(spec: type) -> dict[str, Any]:
    """Return the annotation of each option, in the order of the fields."""
    hints = get_type_hints(spec, include_extras=True)
    return {each.name: hints[each.name] for each in fields(spec) if each.name != "given"}


def _parameters(spec: type[CommandSpec]) -> list[inspect.Parameter]:
    """Return one parameter per option; a field without a default is required."""
    defaults = {each.name: each.default for each in fields(spec)}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if defaults[name] is MISSING else defaults[name],
            annotation=_in_panel(annotation, _panel(spec, name)),
        )
        for name, annotation in _annotations(spec).items()
    ]


def _panel(spec: type, name: str) -> Panel | None:
    """Return the heading of the group that first declares an option."""
    owner = next(each for each in reversed(spec.__mro__) if name in inspect.get_annotations(each))
    return None if issubclass(owner, CommandSpec) else getattr(owner, "PANEL", None)


def _in_panel(annotation: Any, panel: Panel | None) -> Any:
    """Return the annotation with a heading for its option. Raise TypeError for a field without a kind of option."""
    kind, *metadata = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    infos = [copy(each) for each in metadata if isinstance(each, ParameterInfo)]
    if len(infos) != 1:
        raise TypeError(f"a field of a command needs one kind of option (pipelines.command.option_types): {annotation}")
    for heading in (panel, *metadata):
        if isinstance(heading, Panel):
            infos[0].rich_help_panel = heading.title
    return Annotated[kind, infos[0]]
