# SPDX-License-Identifier: Apache-2.0
"""Reads documents from files, one at a time, so that a folder of any size needs the memory of one document.

    .txt               one document per file
    .jsonl, .ndjson    one document per line: {"text": ..., "id": ...}
    .json              one such object, an array of them, or one per line
    .parquet           one document per row: columns `text` and, if there, `id`
    folder             all of these below it
    DatasetSource      one document per row of a Hugging Face dataset

All but .parquet may also end in .gz, .zst, .bz2 or .xz. Paths may be local or of any file system that fsspec opens
(`s3://…`); a path that exists locally is local, even if it looks like a URI. `finding` selects the files of a folder,
`naming` assigns ids, and `opening` limits the length of a document. An unreadable document is yielded as an
UnreadableDocument: the job reports it and continues with the next one.
"""

from collections.abc import Iterator, Mapping, Sequence

from longmem.text.dataset_rows import DatasetSource
from longmem.text.finding import FoundFiles, InputFile, LeftOut, find_files
from longmem.text.formats import read_file
from longmem.text.unreadable import UnreadableDocument, unreadable
from longmem.types import Document

__all__ = [
    "DocumentInput",
    "FoundFiles",
    "InputFile",
    "LeftOut",
    "UnreadableDocument",
    "find_documents",
    "find_files",
    "read_documents",
    "shown_inputs",
]

DocumentInput = str | DatasetSource
"""Input of a command: a file, a folder or a URI, or a dataset."""


def find_documents(inputs: Sequence[DocumentInput]) -> FoundFiles:
    """Return all files of the inputs (see `find_files`), and behind them the datasets, which are not opened."""
    found = find_files([each for each in inputs if isinstance(each, str)])
    datasets = tuple(each for each in inputs if isinstance(each, DatasetSource))
    return FoundFiles((*found.files, *datasets), found.left_out)


def shown_inputs(inputs: Sequence[DocumentInput]) -> list[str]:
    """Return the names of the inputs, which also tell two selections from one dataset apart."""
    return [each if isinstance(each, str) else each.shown for each in inputs]


def read_documents(files: Sequence[InputFile | DatasetSource]) -> Iterator[Document | UnreadableDocument]:
    """Yield every document of the files, with unique ids.

    A second document with the same id is yielded as unreadable, under a unique name.
    """
    seen: dict[str, str] = {}
    for file in files:
        for document in file.read() if isinstance(file, DatasetSource) else read_file(file):
            if document.id in seen:
                document = _duplicate(document, seen)
            seen[document.id] = document.source
            yield document


def _duplicate(document: Document | UnreadableDocument, seen: Mapping[str, str]) -> UnreadableDocument:
    name = f"{document.id} (again, {document.source})"
    while name in seen:
        name += "+"
    return unreadable(
        name,
        document.source,
        f"{document.source}: the id {document.id!r} was already used by {seen[document.id]}; ids must differ: rename "
        "the file or give another id",
    )
