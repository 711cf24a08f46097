# SPDX-License-Identifier: Apache-2.0
"""Fields of command specs: each call gives an option its default, its help text, its kind and its marks.

A spec class lists the options of one command or of a group: `top_k: int = whole_field(64, "Retrieved tokens.")`. Each
function returns what `dataclasses.field` returns; `pipelines.command.spec` makes the command line from it. Help shows
the default, or the text `shown` in its place; with `shown=False` it shows none. `names` lists the flags of an option
that has an alias, or whose flag is not the name of its field.
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

import typer
from typer.models import ParameterInfo

from longmem.errors import ConfigError
from pipelines.command.option_types import LARGEST, LONGEST_S, parse_path, parse_text, real_parser, whole_parser

T = TypeVar("T")
Made = TypeVar("Made")

REQUIRED: Any = MISSING
"""Default of an option or argument that must be given."""


@dataclass(frozen=True)
class OptionMark:
    """A property of an option apart from its kind."""

    meaning: str


@dataclass(frozen=True)
class HelpPanel:
    """A heading of the help, as the `PANEL` of a group of options or as a mark of one option."""

    title: str


DECIDED_BY_SERVICE = OptionMark("A job on a service cannot choose it: the service decides it for all of its jobs.")
MODEL_SETTING = OptionMark("A field of LongMemConfig with the same name.")

MODEL, WORKERS, MEMORY_STORE = HelpPanel("Model"), HelpPanel("Workers"), HelpPanel("Memory store")


@dataclass(frozen=True)
class OptionField:
    """Metadata of a field that is an option or an argument."""

    info: ParameterInfo
    """Description of the option in the terms of Typer, without its default."""
    marks: tuple[OptionMark | HelpPanel, ...]

    @property
    def panel(self) -> HelpPanel | None:
        """Heading that the option itself is marked with."""
        return next((mark for mark in self.marks if isinstance(mark, HelpPanel)), None)


def typer_field(default: T, info: ParameterInfo, *marks: OptionMark | HelpPanel) -> T:
    """Return the field of an option or argument of any other kind that Typer knows."""
    made: Any = field(default=default, metadata={"option": OptionField(info, marks)})
    return made  # type: ignore[no-any-return]


def whole_field(
    default: T,
    help_text: str,
    *marks: OptionMark | HelpPanel,
    names: Sequence[str] = (),
    shown: str | bool = True,
    least: int = 1,
    most: int = LARGEST,
) -> T:
    """Return the field of a whole number, `least` and `most` included."""
    parser = whole_parser(least, most)
    return typer_field(default, typer.Option(*names, parser=parser, help=help_text, show_default=shown), *marks)


def real_field(
    default: T,
    help_text: str,
    *marks: OptionMark | HelpPanel,
    shown: str | bool = True,
    least: float = 0.0,
    most: float = LONGEST_S,
    above: bool = False,
) -> T:
    """Return the field of a finite number, `least` and `most` included; with `above`, `least` is not."""
    parser = real_parser(least, most, above)
    return typer_field(default, typer.Option(parser=parser, help=help_text, show_default=shown), *marks)


def text_field(
    default: T,
    help_text: str,
    *marks: OptionMark | HelpPanel,
    names: Sequence[str] = (),
    shown: str | bool = True,
    metavar: str | None = None,
) -> T:
    """Return the field of a name, an address, a URI or a list with commas; empty text is refused."""
    info = typer.Option(*names, parser=parse_text, help=help_text, show_default=shown, metavar=metavar)
    return typer_field(default, info, *marks)


def path_field(default: T, help_text: str, *marks: OptionMark | HelpPanel, shown: str | bool = True) -> T:
    """Return the field of a path on this machine."""
    return typer_field(default, typer.Option(parser=parse_path, help=help_text, show_default=shown), *marks)


def choice_field(default: T, help_text: str, *marks: OptionMark | HelpPanel, shown: str | bool = True) -> T:
    """Return the field of one of a few names, whose type is a `Literal`."""
    return typer_field(default, typer.Option(help=help_text, show_default=shown), *marks)


def flag_field(help_text: str, *marks: OptionMark | HelpPanel, names: Sequence[str] = ()) -> bool:
    """Return the field of a flag, which is False where it is not given."""
    return typer_field(False, typer.Option(*names, help=help_text), *marks)


def text_argument_field(default: T, help_text: str, metavar: str | None = None, *, shown: str | bool = True) -> T:
    """Return the field of a text, or a list of texts, that is given without a flag."""
    info = typer.Argument(parser=parse_text, metavar=metavar, help=help_text, show_default=shown)
    return typer_field(default, info)


def path_argument_field(default: T, help_text: str, metavar: str) -> T:
    """Return the field of a path on this machine that is given without a flag."""
    return typer_field(default, typer.Argument(parser=parse_path, metavar=metavar, help=help_text))


def option_fields(spec: Any) -> dict[str, OptionField]:
    """Return the metadata of each option of a spec class, or of a group, by the name of its field."""
    return {each.name: each.metadata["option"] for each in fields(spec) if "option" in each.metadata}


def from_options(kind: Callable[..., Made], options: Any, **values: Any) -> Made:
    """Return an instance of the dataclass `kind`: fields come from `values`, then from options of the same name."""
    names: Any = kind
    shared = {each.name for each in fields(names)} & option_fields(options).keys()
    return kind(**{name: getattr(options, name) for name in shared - values.keys()}, **values)


def marked_fields(spec: type, mark: OptionMark) -> list[str]:
    """Return the names of the fields that carry `mark`."""
    return [name for name, found in option_fields(spec).items() if mark in found.marks]


def refuse_given(spec: Any, mark: OptionMark, reason: str) -> None:
    """Raise ConfigError when the user gave any option that carries `mark`."""
    refused = [f"--{name.replace('_', '-')}" for name in marked_fields(type(spec), mark) if name in spec.given]
    if refused:
        raise ConfigError(f"{', '.join(refused)}: {reason}")
