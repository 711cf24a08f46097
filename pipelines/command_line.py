"""What every command shares: exit codes, what ends a command, and how options become values.

Exit codes: 0 ok, 1 some documents failed, 2 usage or bad input, 130 interrupted.
"""

import json
import os
import signal
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from longmem.errors import ConfigError, LongMemError

EXIT_FAILED_DOCUMENTS = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class ComputeDtype(StrEnum):
    """Type in which the backbone and the SideNet compute."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class JobDtype(StrEnum):
    """The same for a job, which may choose itself."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"


class StoredFormat(StrEnum):
    """Format in which keys and values are stored."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class SpecialTokenRule(StrEnum):
    """What a special token is that a text spells."""

    PARSE = "parse"
    TEXT = "text"


class Placement(StrEnum):
    """How workers are spread over nodes."""

    PACK = "pack"
    SPREAD = "spread"


class Retention(StrEnum):
    """How long blocks stay in the store."""

    WINDOW = "window"
    DOCUMENT = "document"
    FOREVER = "forever"


class Durability(StrEnum):
    """What a stored block survives."""

    PROCESS = "process"
    POWER = "power"


class SearchEngine(StrEnum):
    """What finds chunks in a reader's window."""

    AUTO = "auto"
    NATIVE = "native"
    TORCH = "torch"
    FAISS = "faiss"
    IVF = "ivf"


class exit_codes:  # noqa: N801 - reads as a statement: `with exit_codes(...)`
    """Turns what ends a command into a sentence for the user and an exit code; bugs keep their traceback."""

    def __init__(self, console: Console, out: Path | None = None) -> None:
        """`out`: folder of a job that can be continued after an interruption."""
        self._console = console
        self._out = out

    def __enter__(self) -> None:
        # a scheduler's polite kill is handled like Ctrl-C: workers stop, nothing scored is lost
        signal.signal(signal.SIGTERM, _interrupt)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            again = f"What was done is kept. Continue with the same command and --resume --out {self._out}"
            self._console.print(f"[yellow]interrupted.[/] {escape(again if self._out else '')}", soft_wrap=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        if isinstance(error, LongMemError):
            self._console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(EXIT_BAD_INPUT) from None


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_or_hub(model: str) -> str:
    """A local folder as an absolute path, because workers have other working directories; else a hub id."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def local_inputs(inputs: list[str]) -> tuple[str, ...]:
    """Return local inputs as absolute paths, because workers have other working directories; URIs as they are."""
    from longmem.text.finding import is_local

    return tuple(str(Path(each).absolute()) if is_local(each) else each for each in inputs)


def refuse_options(context: typer.Context, names: tuple[str, ...], reason: str) -> None:
    """Raises ConfigError when the user gave any of these options."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options}: {reason}")


def check_device(device: str) -> None:
    """Raises ConfigError for a device that torch does not have."""
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; install a CUDA build of torch, or use --device cpu")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` options; values are numbers, true or false where they look like it, else words."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise ConfigError(f"--set needs NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings
