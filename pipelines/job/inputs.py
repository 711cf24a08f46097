# SPDX-License-Identifier: Apache-2.0
"""Finds the inputs of every command that reads documents, and checks that a tokenizer gives offsets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from longmem.errors import ConfigError
from longmem.text.dataset_rows import DatasetSource
from longmem.text.documents import DocumentInput, FoundFiles, find_documents
from pipelines.command.console import printable

if TYPE_CHECKING:
    from longmem.model.source import ModelDescription


def find_inputs(inputs: Sequence[DocumentInput], console: Console) -> FoundFiles:
    """Return all files and datasets of the inputs, and print what is skipped.

    A summary takes `left_out.as_dict()`. Raises ConfigError (see `find_files`, `DatasetSource.check`).
    """
    for each in inputs:
        if isinstance(each, DatasetSource):
            each.check()
    found = find_documents(inputs)
    if found.left_out:
        console.print(f"[yellow]not read:[/] {escape(printable(str(found.left_out)))}", soft_wrap=True, highlight=False)
    return found


def check_spans(model: "ModelDescription", option: str) -> None:
    """Raise ConfigError for an option that needs character offsets if the model's tokenizer gives none."""
    if not model.gives_spans:
        raise ConfigError(
            f"{option} needs a tokenizer that gives character offsets, and that of {model.name} is written in Python; "
            f"add a tokenizer.json to the model, or leave out {option}"
        )
