# SPDX-License-Identifier: Apache-2.0
"""Reads the rows of a Hugging Face dataset as documents, one at a time.

`datasets` is optional (`pip install 'longmem[datasets]'`) and imported only here. A dataset of the hub is streamed, and
a folder that `save_to_disk` wrote is memory-mapped, so a dataset of any size needs the memory of a few rows. Version 4
and later run no code of a dataset.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union

from longmem.errors import ConfigError, DocumentError
from longmem.text.opening import compression_of
from longmem.text.rows import document_of
from longmem.text.unreadable import UnreadableDocument, unreadable
from longmem.types import Document

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Rows = Union["Dataset", "IterableDataset"]

BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}
"""Reader of a single file by its suffix without the compression. A .txt file would be one row per line."""
SAVED_NAMES = ("state.json", "dataset_dict.json")
"""Files of which `save_to_disk` writes one into its folder."""
DEFAULT_TEXT_COLUMN, DEFAULT_ID_COLUMN = "text", "id"


@dataclass(frozen=True)
class DatasetSource:
    """One split of a dataset, and its columns that hold text and id."""

    name: str
    """Local folder or file, or a name of the hub (`user/name`, also `hf://datasets/user/name`, with `@REVISION`)."""
    subset: str | None = None
    split: str | None = None
    """Split to read; None for a dataset with only one."""
    text_column: str = DEFAULT_TEXT_COLUMN
    id_column: str | None = None
    """Column of the ids; None for `id` where there is such a column."""

    suffix: ClassVar[str] = ""
    """Suffix of an input that is no file."""

    @property
    def shown(self) -> str:
        """Name of the rows in errors and tables, which also tells two selections from one dataset apart."""
        text = None if self.text_column == DEFAULT_TEXT_COLUMN else self.text_column
        parts = {"texts": text, "ids": self.id_column}
        return ", ".join([self._rows_shown, *(f"{name} {value}" for name, value in parts.items() if value)])

    @property
    def _rows_shown(self) -> str:
        """Name of the rows without the columns that are read."""
        parts = {"subset": self.subset, "split": self.split}
        return ", ".join(["dataset " + self.name, *(f"{name} {value}" for name, value in parts.items() if value)])

    def check(self) -> None:
        """Raise ConfigError for a dataset that cannot be opened, or that lacks a column."""
        checked_columns(self.open(), self.text_column, self.id_column, self._rows_shown)

    def read(self) -> Iterator[Document | UnreadableDocument]:
        """Yield the documents in the order of rows; ids are given, or `name:row` with rows counted from 0."""
        return read_rows(self.open(), self.text_column, self.id_column, self._short_name, self.shown)

    @property
    def _short_name(self) -> str:
        path = Path(self.name)
        if path.is_file():
            return path.name.removesuffix(compression_of(self.name)).rpartition(".")[0]
        return path.name if path.exists() else path.name.partition("@")[0]

    def open(self) -> Rows:
        """Return the rows without reading them. Raises ConfigError."""
        datasets, name = _library(), self.name.removeprefix("hf://datasets/")
        with _translated(self.shown, ConfigError):
            if any((Path(name) / saved).is_file() for saved in SAVED_NAMES):
                found = datasets.load_from_disk(name)
            elif Path(name).is_file():
                found = datasets.load_dataset(_builder(name), data_files=name, split=self.split, streaming=True)
            else:
                if Path(name).suffix.lower() in BUILDERS and not Path(name).exists():
                    # names of the hub have no such ending, and it would be asked for a minute
                    raise ConfigError(f"there is no file {name}; give a file, a folder, or a name of the hub")
                hub_name, _, revision = (name, "", None) if Path(name).exists() else name.partition("@")
                found = datasets.load_dataset(
                    hub_name, self.subset, split=self.split, streaming=True, revision=revision or None
                )
        return _only_split(found, self.split, self.shown)


def read_dataset(
    dataset: Rows, *, text_column: str = DEFAULT_TEXT_COLUMN, id_column: str | None = None, name: str = "dataset"
) -> Iterator[Document]:
    """Return an iterator over the rows of a `datasets.Dataset` or `datasets.IterableDataset` as documents.

        for document in read_dataset(load_dataset("user/books", split="test"), text_column="content"):
            print(document.id, model.score(document.text).perplexity)

    The id of a document is that of `id_column` (by default `id`, where there is one), else `name:row`. Raises
    ConfigError for a column that is not there, and for anything that is no dataset. The iterator raises DocumentError
    for a row that is no document.
    """
    if not isinstance(dataset, _library().Dataset | _library().IterableDataset):
        held = f", which holds {', '.join(map(str, dataset))}: choose one" if isinstance(dataset, dict) else ""
        raise ConfigError(
            f"expected a datasets.Dataset or datasets.IterableDataset, got {type(dataset).__name__}{held}"
        )
    return map(_require_readable, read_rows(dataset, text_column, id_column, name, name))


def _require_readable(document: Document | UnreadableDocument) -> Document:
    if isinstance(document, UnreadableDocument):
        raise document.error
    return document


def read_rows(
    dataset: Rows, text_column: str, id_column: str | None, name: str, shown: str
) -> Iterator[Document | UnreadableDocument]:
    """Check the columns, and return an iterator over the documents. `shown` names the dataset in messages."""
    columns = checked_columns(dataset, text_column, id_column, shown)
    # other columns may be pictures, which would be decoded; a format turns numbers into tensors
    return _documents(dataset.with_format(None).select_columns(columns), columns, name, shown)


def checked_columns(dataset: Rows, text_column: str, id_column: str | None, shown: str) -> list[str]:
    """Return the columns to read: that of the texts and, if there is one, that of the ids. Raises ConfigError."""
    with _translated(shown, ConfigError):
        # a stream whose types are not declared knows its columns from its first row
        names = dataset.column_names or list(next(iter(dataset), {}))
    for column, option in ((text_column, "--text-column"), (id_column, "--id-column")):
        if column is not None and column not in names:
            held = ", ".join(names) or "none"
            raise ConfigError(f"{shown} has no column {column!r} ({option}); it has {held}")
    ids = id_column or (DEFAULT_ID_COLUMN if DEFAULT_ID_COLUMN in names else None)
    return [text_column] if ids in (None, text_column) else [text_column, str(ids)]


def _documents(rows: Rows, columns: list[str], name: str, shown: str) -> Iterator[Document | UnreadableDocument]:
    text_column, id_column = columns[0], columns[-1]
    iterator = iter(rows)
    for number in count():
        default, source = f"{name}:{number}", f"{shown} row {number}"
        try:
            with _translated(source, DocumentError):
                row = next(iterator, None)
        except DocumentError as error:
            yield unreadable(default, source, f"{error}; the rows after it are not read")
            return
        if row is None:
            break
        value = row[id_column] if len(columns) > 1 else None
        yield document_of(default, source, row[text_column], value, text_name=text_column, id_name=id_column)
    if number == 0:
        yield unreadable(name, shown, f"{shown} is empty: expected at least one row")


def _builder(path: str) -> str:
    suffix = Path(path.removesuffix(compression_of(path))).suffix.lower()
    if suffix not in BUILDERS:
        raise ConfigError(
            f"--dataset {path}: expected a file of {', '.join(BUILDERS)}, a folder, or a name of the hub; give a text "
            "file as an INPUT"
        )
    return BUILDERS[suffix]


def _only_split(found: "Rows | dict[str, Rows]", split: str | None, shown: str) -> Rows:
    if not isinstance(found, dict):
        if split is not None and found.split is not None and str(found.split) != split and "+" not in split:
            raise ConfigError(f"{shown}: there is only the split {found.split}; leave out --split")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ConfigError(f"{shown}: choose one of its splits with --split: {', '.join(found)}")
    return found[str(split)]


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"a dataset needs the package datasets ({error}): pip install 'longmem[datasets]', or give its files as "
            "inputs"
        ) from error
    return datasets


@contextmanager
def _translated(shown: str, kind: type[ConfigError] | type[DocumentError]) -> Iterator[None]:
    """Turn errors of the library, which have no common base, into one of this project."""
    try:
        yield
    except (ConfigError, DocumentError):
        raise
    except Exception as error:
        raise kind(f"cannot read {shown}: {type(error).__name__}: {error}") from error
