# SPDX-License-Identifier: Apache-2.0
"""Input discovery for every command that reads documents."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from longmem.text.dataset_rows import DatasetSource
from longmem.text.documents import FoundFiles, LeftOut, find_files
from pipelines.command.console import printable


def find_inputs(inputs: Sequence[str], console: Console, dataset: DatasetSource | None = None) -> FoundFiles:
    """Return all files of the inputs, or the dataset if there is one, and print what is skipped.

    A summary takes `left_out.as_dict()`. Raises ConfigError (see `find_files`, `DatasetSource.check`).
    """
    if dataset is not None:
        dataset.check()
        return FoundFiles((dataset,), LeftOut())
    found = find_files(inputs)
    if found.left_out:
        console.print(f"[yellow]not read:[/] {escape(printable(str(found.left_out)))}", soft_wrap=True, highlight=False)
    return found
