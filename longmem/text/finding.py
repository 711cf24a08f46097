# SPDX-License-Identifier: Apache-2.0
"""Finds the files of the inputs: walks folders recursively, and counts all files that are not read.

In a folder, files and folders whose name begins with a dot, and `__MACOSX`, are never documents. Linked folders are
followed; a file that is reached twice is read once. Notes about the data (README, LICENSE, …) next to tables, and files
that describe a data set, are left out.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import fsspec

from longmem.errors import ConfigError
from longmem.system.redaction import redacted
from longmem.text.dataset_rows import DatasetSource
from longmem.text.naming import tell_apart
from longmem.text.opening import COMPRESSIONS, compression_of, irregular_kind

FORMATS = {".txt": "text", ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".parquet": "table"}
"""Format of a file by its suffix without the compression."""
EXPECTED = f"{', '.join(FORMATS)}, the first four also with {', '.join(COMPRESSIONS)}"

HIDDEN, NOTES, AGAIN, BROKEN, DENIED = "hidden", "note", "read already", "broken link", "folder that cannot be listed"
NOTE_NAMES = ("readme", "license", "licence", "copying", "notice", "changelog", "changes", "citation", "authors")
"""First words of file names that are notes, if the folder also has tables."""
DESCRIPTIONS = {"dataset_info", "dataset_infos", "dataset_dict", "dataset-metadata", "datapackage", "metadata", "state"}
"""Names of .json files that describe a data set."""
NUM_EXAMPLES = 3
"""Names that a message lists per kind."""


@dataclass(frozen=True)
class InputFile:
    """One input file."""

    filesystem: Any
    """File system of fsspec; None for a local path."""
    path: str
    id: str
    suffix: str
    """Suffix of format and compression: `.jsonl.gz`."""

    @property
    def shown(self) -> str:
        """Name of the file in errors and tables: its local path, or its URI without secrets.

        The URI keeps its scheme, because redaction needs one to detect secrets.
        """
        if self.filesystem is None:
            return self.path
        protocol = self.filesystem.protocol
        scheme = protocol if isinstance(protocol, str) else protocol[0]
        return redacted(self.path if "://" in self.path else f"{scheme}://{self.path.lstrip('/')}")

    @property
    def kind(self) -> str:
        """Format of the file, a value of FORMATS."""
        return FORMATS[self.suffix.removesuffix(compression_of(self.suffix))]


@dataclass
class LeftOut:
    """Counts and first names of the files of the inputs that are not read, by kind."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count one file."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(shown := self.examples.setdefault(kind, [])) < NUM_EXAMPLES:
            shown.append(redacted(name.encode("utf-8", "replace").decode("utf-8")))

    def add_all(self, other: "LeftOut") -> None:
        """Add the counts of another LeftOut."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            shown = self.examples.setdefault(kind, [])
            shown += other.examples[kind][: NUM_EXAMPLES - len(shown)]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """Return `2 .pdf (a.pdf, b.pdf), 5 hidden (.git, …)`."""
        parts = []
        for kind in sorted(self.counts):
            shown = ", ".join(self.examples[kind]) + (", …" if self.counts[kind] > len(self.examples[kind]) else "")
            parts.append(f"{self.counts[kind]:,} {kind} ({shown})")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return the counts in the form of a summary: `{".pdf": {"count": 2, "examples": ["a.pdf", "b.pdf"]}}`."""
        return {kind: {"count": self.counts[kind], "examples": self.examples[kind]} for kind in sorted(self.counts)}


@dataclass(frozen=True)
class FoundFiles(Sequence[InputFile | DatasetSource]):
    """Files of the inputs in reading order, or a dataset, and the files left out."""

    files: tuple[InputFile | DatasetSource, ...]
    left_out: LeftOut

    @overload
    def __getitem__(self, index: int) -> InputFile | DatasetSource: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[InputFile | DatasetSource]: ...
    def __getitem__(self, index: int | slice) -> InputFile | DatasetSource | Sequence[InputFile | DatasetSource]:
        return self.files[index]

    def __len__(self) -> int:
        return len(self.files)


def find_files(inputs: Sequence[str]) -> FoundFiles:
    """Return all files of the inputs with unique ids, in the order given, and sorted by path within a folder.

    Raises ConfigError for an input that does not exist, has an unsupported format, or is a folder without documents.
    """
    left_out = LeftOut()
    files: list[InputFile] = []
    seen: set[str] = set()
    for name in inputs:
        for file in _expand(name, left_out):
            real = os.path.realpath(file.path) if file.filesystem is None else f"{id(file.filesystem)} {file.path}"
            if real in seen:
                left_out.add(AGAIN, file.shown)
                continue
            seen.add(real)
            files.append(file)
    ids = tell_apart(
        [file.id if file.filesystem is None else redacted(file.id) for file in files],
        [file.shown[: -len(file.suffix)] for file in files],
        [file.shown[-len(file.suffix) :] for file in files],
        ["text" if file.kind == "text" else "rows" for file in files],
    )
    return FoundFiles(tuple(replace(file, id=each) for file, each in zip(files, ids, strict=True)), left_out)


def is_local(name: str) -> bool:
    """Return True if a local path of that name exists, even one that looks like a URI (`a::b.txt`, `#1.txt`)."""
    return bool(name) and os.path.lexists(name)


def suffix_of(name: str) -> str | None:
    """Return the suffix of format and compression of a file name, or None for an unsupported one."""
    lower = name.lower()
    compression = compression_of(lower)
    form = next((each for each in FORMATS if lower.removesuffix(compression).endswith(each)), None)
    # Parquet has compression of its own
    return None if form is None or (compression and form == ".parquet") else form + compression


def _expand(name: str, left_out: LeftOut) -> list[InputFile]:
    if not name.strip():
        raise ConfigError("an input is empty: expected a file or folder; see --help for formats")
    if is_local(name):
        return _expand_local(name, left_out)
    try:
        filesystem, path = fsspec.core.url_to_fs(name)
        info = filesystem.info(path)
        is_folder = info["type"] == "directory"
        paths = sorted(filesystem.find(path)) if is_folder else [path]
    except FileNotFoundError:
        raise ConfigError(f"input not found: {name} (expected a file or folder; see --help for formats)") from None
    except Exception as error:
        # a remote file system raises the errors of its client (botocore, aiohttp, …), which have no common base
        raise ConfigError(f"cannot open input {name}: {str(error) or type(error).__name__}") from error
    if not is_folder:
        return [_one_file(filesystem, path, name)]
    inside = LeftOut()
    named = {each.removeprefix(path).lstrip("/"): each for each in paths}
    shown = [below for below in named if not _is_hidden(below, inside)]
    return _documents(filesystem, name, {below: named[below] for below in shown}, inside, left_out)


def _expand_local(name: str, left_out: LeftOut) -> list[InputFile]:
    # not resolved: a link keeps the name that the user gave
    path = str(Path(name).absolute())
    try:
        kind = irregular_kind(Path(path).stat().st_mode)
        if kind != "folder":
            if kind is not None:
                raise ConfigError(f"input {name} is a {kind}: expected a regular file or a folder")
            return [_one_file(None, path, name)]
        inside = LeftOut()
        return _documents(None, name, dict(_walk(path, inside)), inside, left_out)
    except OSError as error:
        raise ConfigError(f"cannot open input {name}: {error.strerror}") from error


def _one_file(filesystem: Any, path: str, name: str) -> InputFile:
    suffix = suffix_of(path)
    if suffix is None:
        raise ConfigError(f"input {name} has an unknown format: expected {EXPECTED}, or a folder")
    return InputFile(filesystem, path, path.rsplit("/", 1)[-1][: -len(suffix)], suffix)


def _documents(
    filesystem: Any, name: str, paths: dict[str, str], inside: LeftOut, left_out: LeftOut
) -> list[InputFile]:
    """Return the documents of a folder. `paths` maps relative to full paths. Raises ConfigError if there are none."""
    files = []
    for below in paths:
        if (suffix := suffix_of(below)) is None:
            inside.add(_unknown_kind(below), below)
        elif suffix.startswith(".json") and below.rsplit("/", 1)[-1][: -len(suffix)].lower() in DESCRIPTIONS:
            inside.add(NOTES, below)
        else:
            files.append(InputFile(filesystem, paths[below], below[: -len(suffix)], suffix))
    if any(file.kind != "text" for file in files):
        for note in [file for file in files if file.kind == "text" and _is_note(file.id)]:
            inside.add(NOTES, note.id + note.suffix)
            files.remove(note)
    if not files:
        held = f"it holds {inside}" if inside else "it is empty"
        raise ConfigError(f"folder {name} holds no documents: expected files named *{', *'.join(FORMATS)}; {held}")
    left_out.add_all(inside)
    return sorted(files, key=lambda file: file.path)


def _walk(root: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """Yield the path relative to `root` and the full path of every file.

    Linked files come last, so that a file reached twice is listed under its own path.
    """
    visited: set[str] = set()
    files: set[str] = set()
    links: list[tuple[str, str]] = []
    folders = [("", root)]
    while folders or links:
        below, path = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(path)
        if not Path(real).is_dir():
            if real in files:
                left_out.add(AGAIN, below)
            else:
                files.add(real)
                yield below, path
            continue
        if real in visited:
            left_out.add(AGAIN, below)
            continue
        visited.add(real)
        for name, entry in _entries(path, below, left_out):
            relative = f"{below}/{name}".lstrip("/")
            if _is_hidden(name, left_out, relative):
                continue
            kind = _kind_of(entry)
            if kind not in (None, "folder"):
                left_out.add(kind or "", relative)
            elif entry.is_symlink():
                links.append((relative, entry.path))
            elif kind == "folder":
                folders.append((relative, entry.path))
            else:
                files.add(f"{real}/{name}")
                yield relative, entry.path


def _entries(path: str, below: str, left_out: LeftOut) -> list[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(path) as entries:
            return sorted(((entry.name, entry) for entry in entries), key=lambda pair: pair[0])
    except OSError:
        if not below:
            raise
        left_out.add(DENIED, below)
        return []


def _kind_of(entry: os.DirEntry[str]) -> str | None:
    """Return None for a regular file, else its kind; a link has the kind of its target."""
    try:
        return irregular_kind(entry.stat().st_mode)
    except OSError:
        # the target is missing, or links form a cycle
        return BROKEN


def _is_hidden(below: str, left_out: LeftOut, shown: str | None = None) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in below.split("/"))
    if hidden:
        left_out.add(HIDDEN, below if shown is None else shown)
    return hidden


def _is_note(stem: str) -> bool:
    name = stem.rsplit("/", 1)[-1].lower()
    return any(name == note or (name.startswith(note) and not name[len(note)].isalnum()) for note in NOTE_NAMES)


def _unknown_kind(name: str) -> str:
    """Return the suffix of an unsupported file, including the suffix before a compression."""
    base = name.rsplit("/", 1)[-1].lower()
    stem, dot, last = base.removesuffix(compression_of(base)).rpartition(".")
    return f".{last}{compression_of(base)}" if stem and dot else compression_of(base) or "without suffix"
