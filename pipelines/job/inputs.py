"""The inputs of every command that reads documents: found in one place, which says what is left out."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from longmem.text.documents import FoundFiles, find_files
from pipelines.command.console import printable


def find_inputs(inputs: Sequence[str], console: Console) -> FoundFiles:
    """Return all files behind the inputs, and print what stands there and is not read.

    A summary takes `left_out.as_dict()`. Raises ConfigError like `find_files`.
    """
    found = find_files(inputs)
    if found.left_out:
        console.print(f"[yellow]not read:[/] {escape(printable(str(found.left_out)))}", soft_wrap=True, highlight=False)
    return found
