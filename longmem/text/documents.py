"""Reading documents from files, one at a time, so that a folder of any size needs the memory of one document.

    .txt                one document per file
    .jsonl, .jsonl.gz   one document per line: {"text": ..., "id": ...}
    .parquet            one document per row: columns `text` and, if there, `id`
    folder              its .txt files, or where it has none, its .jsonl, .jsonl.gz and .parquet files

Paths may be local or anything fsspec opens (`s3://…`). What cannot be read becomes an UnreadableDocument in its
place: the job reports it and goes on with the next one.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError, DocumentError
from longmem.redaction import redacted
from longmem.types import Document

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")

_READ_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)
"""What reading a damaged or vanished file raises (a bad gzip file is an OSError; a parquet string may not be UTF-8)."""


@dataclass(frozen=True)
class UnreadableDocument:
    """A document that could not be read, and why."""

    id: str
    source: str
    error: DocumentError


@dataclass(frozen=True)
class InputFile:
    filesystem: Any
    path: str
    id: str
    suffix: str

    @property
    def shown(self) -> str:
        """What errors and tables call the file: its local path, or its URI without secrets.

        With a scheme, because no secret is recognised without one.
        """
        protocol = self.filesystem.protocol
        scheme = protocol if isinstance(protocol, str) else protocol[0]
        is_whole = scheme in ("file", "local") or "://" in self.path
        return redacted(self.path if is_whole else f"{scheme}://{self.path.lstrip('/')}")


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """All files behind the inputs, in the order given and by name within a folder.

    Raises ConfigError for an input that does not exist, has a format that is not supported, or is a folder without
    documents: known before any work begins.
    """
    return [file for name in inputs for file in _expand(name)]


def read_documents(files: Sequence[InputFile]) -> Iterator[Document | UnreadableDocument]:
    """Every document of the files, under ids that all differ: of two with the same id the first is taken, the second
    is unreadable and gets a name of its own."""
    seen: dict[str, str] = {}
    for file in files:
        for document in _read_file(file):
            if document.id in seen:
                document = _duplicate(document, seen)
            seen[document.id] = document.source
            yield document


def first_document(inputs: Sequence[str]) -> Document | None:
    """The first that can be read; None where there is none. Raises ConfigError like `find_files`."""
    return next((document for document in read_documents(find_files(inputs)) if isinstance(document, Document)), None)


def _duplicate(document: Document | UnreadableDocument, seen: Mapping[str, str]) -> UnreadableDocument:
    name = f"{document.id} (again, {document.source})"
    while name in seen:
        name += "+"
    return _unreadable(
        name,
        document.source,
        f"the id {document.id!r} was already used by {seen[document.id]}; ids must differ: rename the file or give "
        "another id",
    )


def _expand(name: str) -> list[InputFile]:
    try:
        filesystem, path = fsspec.core.url_to_fs(name)
        info = filesystem.info(path)
    except FileNotFoundError:
        raise ConfigError(f"input not found: {name} (expected a file or folder; see --help for formats)") from None
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"cannot open input {name}: {error}") from error
    if info["type"] != "directory":
        suffix = _suffix(path)
        if suffix is None:
            raise ConfigError(f"input {name} has an unknown format: expected {', '.join(SUFFIXES)} or a folder")
        return [InputFile(filesystem, path, _stem(path.rsplit("/", 1)[-1], suffix), suffix)]
    found = sorted(filesystem.find(path))
    texts = [each for each in found if _suffix(each) == ".txt"]
    chosen = texts or [each for each in found if _suffix(each)]
    if not chosen:
        raise ConfigError(f"folder {name} holds no documents: expected files named *{', *'.join(SUFFIXES)}")
    files = []
    for each in chosen:
        suffix = _suffix(each)
        assert suffix is not None
        files.append(InputFile(filesystem, each, _stem(each.removeprefix(path).lstrip("/"), suffix), suffix))
    return files


def _suffix(path: str) -> str | None:
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)


def _stem(name: str, suffix: str) -> str:
    return name[: -len(suffix)]


def _read_file(file: InputFile) -> Iterator[Document | UnreadableDocument]:
    read = {".txt": _read_text, ".parquet": _read_parquet}.get(file.suffix, _read_lines)
    found = False
    try:
        for document in read(file):
            found = True
            yield document
        if not found:
            yield _unreadable(file.id, file.shown, f"{file.shown} is empty: expected at least one document")
    except _READ_ERRORS as error:
        yield _unreadable(file.id, file.shown, f"cannot read {file.shown}: {error}")


def _read_text(file: InputFile) -> Iterator[Document | UnreadableDocument]:
    with _open(file) as stream:
        yield _decoded(file.id, file.shown, stream.read())


def _read_lines(file: InputFile) -> Iterator[Document | UnreadableDocument]:
    with _open(file) as raw, gzip.open(raw) if file.suffix == ".jsonl.gz" else nullcontext(raw) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _from_line(f"{file.id}:{number}", f"{file.shown} line {number}", line)


def _from_line(default_id: str, source: str, line: bytes) -> Document | UnreadableDocument:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return _unreadable(default_id, source, f"{source} is not valid UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return _unreadable(default_id, source, f'{source} is not valid JSON: {error}; expected {{"text": ...}}')
    if not isinstance(values, dict):
        return _unreadable(default_id, source, f"{source} must be a JSON object, got {type(values).__name__}")
    return _from_fields(default_id, source, values.get("text"), values.get("id"))


def _read_parquet(file: InputFile) -> Iterator[Document | UnreadableDocument]:
    with _open(file) as stream, pq.ParquetFile(stream) as table:
        names = table.schema_arrow.names
        if "text" not in names:
            yield _unreadable(file.id, file.shown, f"{file.shown} needs a column `text`, it has {names}")
            return
        row = 0
        for batch in table.iter_batches(batch_size=16, columns=[name for name in ("text", "id") if name in names]):
            for values in batch.to_pylist():
                source = f"{file.shown} row {row}"
                yield _from_fields(f"{file.id}:{row}", source, values["text"], values.get("id"))
                row += 1


def _from_fields(default_id: str, source: str, text: object, given_id: object) -> Document | UnreadableDocument:
    name = default_id if given_id is None else str(given_id)
    if not isinstance(text, str):
        return _unreadable(name, source, f"{source} needs a string in `text`, got {type(text).__name__}")
    return _checked(Document(name, text, source))


def _decoded(name: str, source: str, data: bytes) -> Document | UnreadableDocument:
    if (position := data.find(b"\0")) >= 0:
        return _unreadable(name, source, f"{source} is a binary file (a NUL byte at {position}); expected UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _unreadable(
            name, source, f"{source} is not valid UTF-8: {error.reason} at byte {error.start}; convert it to UTF-8"
        )
    return _checked(Document(name, text, source))


def _checked(document: Document) -> Document | UnreadableDocument:
    if not document.text.strip():
        return _unreadable(document.id, document.source, f"{document.source} is empty: expected some text")
    # JSON can spell half a surrogate pair, and a file name can be any bytes: no tokenizer and no table takes those
    for what, text in (("text", document.text), ("id", document.id), ("path", document.source)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"{document.source}: the {what} is not valid Unicode: {error.reason} at {error.start}"
            return _unreadable(document.id, document.source, message)
    return document


def _open(file: InputFile) -> Any:
    """The raw bytes of a file."""
    return file.filesystem.open(file.path, "rb")


def _unreadable(name: str, source: str, message: str) -> UnreadableDocument:
    name, source, message = (text.encode("utf-8", "replace").decode("utf-8") for text in (name, source, message))
    return UnreadableDocument(name, source, DocumentError(message))
