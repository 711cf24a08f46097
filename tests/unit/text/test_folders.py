# SPDX-License-Identifier: Apache-2.0
"""Folders: every file is read or reported, links are followed once, and no two files share an id."""

import bz2
import gzip
import json
import lzma
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from longmem.errors import ConfigError
from longmem.text.documents import UnreadableDocument, find_files, read_documents


def good(*inputs: object) -> dict[str, str]:
    """Return texts by id of inputs without defects."""
    documents = list(read_documents(find_files([str(each) for each in inputs])))
    assert [str(each.error) for each in documents if isinstance(each, UnreadableDocument)] == []
    return {each.id: each.text for each in documents if not isinstance(each, UnreadableDocument)}


def errors(*inputs: object) -> dict[str, str | None]:
    """Return errors by id; None for a readable document."""
    documents = read_documents(find_files([str(each) for each in inputs]))
    return {each.id: str(each.error) if isinstance(each, UnreadableDocument) else None for each in documents}


def left_out(*inputs: object) -> dict[str, tuple[int, list[str]]]:
    summary = find_files([str(each) for each in inputs]).left_out.as_dict()
    return {kind: (values["count"], values["examples"]) for kind, values in summary.items()}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def line(text: str, **more: object) -> bytes:
    return (json.dumps({"text": text, **more}) + "\n").encode()


def zstd(data: bytes) -> bytes:
    compressed = pa.compress(data, codec="zstd", asbytes=True)
    assert isinstance(compressed, bytes)
    return compressed


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


# --- formats ------------------------------------------------------------------------------------------------------


def test_find_files_of_a_mixed_folder_reads_every_format(tmp_path: Path) -> None:
    for compression, pack in PACKED.items():
        write(tmp_path / f"t{compression[1:]}.txt{compression}", pack(b"a text"))
        for form in ("jsonl", "ndjson", "json"):
            write(tmp_path / f"{form}{compression[1:]}.{form}{compression}", pack(line("one") + line("two")))
    pq.write_table(pa.table({"text": ["a row"]}), tmp_path / "rows.parquet")
    names = [compression[1:] for compression in PACKED]
    expected = {f"t{name}": "a text" for name in names} | {"rows:0": "a row"}
    for form in ("jsonl", "ndjson", "json"):
        expected |= {f"{form}{name}:{number}": ("one", "two")[number - 1] for name in names for number in (1, 2)}
    assert good(tmp_path) == expected
    assert left_out(tmp_path) == {}


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
def test_read_documents_of_several_members_reads_all_of_them(tmp_path: Path, compression: str) -> None:
    pack = PACKED[compression]
    path = write(tmp_path / f"a.jsonl{compression}", pack(line("one")) + pack(line("two") + line("three")))
    assert good(path) == {"a:1": "one", "a:2": "two", "a:3": "three"}


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("form", ["txt", "jsonl", "json"])
def test_read_documents_of_a_cut_archive_fails_that_file_alone(tmp_path: Path, form: str, compression: str) -> None:
    noise = "".join(chr(97 + number * number % 26) for number in range(50_000))
    whole = PACKED[compression](line(noise))
    write(tmp_path / f"a.{form}{compression}", whole[: len(whole) // 2])
    write(tmp_path / "z.txt", "text")
    found = errors(tmp_path)
    assert found.pop("z") is None
    [message] = found.values()
    assert message is not None
    assert f"cannot read {tmp_path}/a.{form}{compression}" in message


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "one", "id": "a"}\n{"text": "two"}\n',
        '[{"text": "one", "id": "a"}, {"text": "two"}]',
        '\n[\n  {"text": "one",\n   "id": "a"},\n  {"text": "two"}\n]\n',
        '\ufeff[{"text": "one", "id": "a"}, {"text": "two"}]',
    ],
)
def test_read_documents_of_json_reads_lines_and_arrays(tmp_path: Path, content: str) -> None:
    assert good(write(tmp_path / "b.json", content)) == {"a": "one", "b:2": "two"}


@pytest.mark.parametrize("content", ['{"text": "one"}', '{\n "text":\n "one"\n}\n'])
def test_read_documents_of_json_with_one_object_is_one_document(tmp_path: Path, content: str) -> None:
    assert good(write(tmp_path / "b.json", content)) == {"b:1": "one"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "torn\n{"text": "two"}\n', {"b:1": "line 1 is not valid JSON", "b:2": None}),
        ('[{"text": "one"}, 3]', {"b:1": None, "b:2": "object 2 must be a JSON object, got int"}),
        ("[1", {"b": "is not valid JSON"}),
        ('{"data": [], "version": 1}', {"b:1": "needs a string in `text`, got NoneType"}),
        ("[]", {"b": "is empty: expected at least one document"}),
        ('"text"', {"b:1": "must be a JSON object, got str"}),
    ],
)
def test_read_documents_of_json_names_what_is_no_document(
    tmp_path: Path, content: str, expected: dict[str, str | None]
) -> None:
    found = errors(write(tmp_path / "b.json", content))
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        assert (found[name] is None) == (part is None)
        assert (part or "") in (found[name] or "")


def test_read_documents_of_lines_ends_them_at_lf_crlf_and_cr_alone(tmp_path: Path) -> None:
    inside = json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False)
    content = f'\ufeff{{"text": "a"}}\r\n\ufeff{{"text": "b"}}\r{inside}\r\n\r\n{{"text": "c"}}'
    path = write(tmp_path / "a.jsonl", content)
    assert good(path) == {"a:1": "a", "a:2": "b", "a:3": "one\u2028two\x85three", "a:5": "c"}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_read_documents_of_any_column_of_text_reads_it(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([b"one", b"two"], kind) if kind == pa.binary() else pa.array(["one", "two"]).cast(kind)
    pq.write_table(pa.table({"text": values}), tmp_path / "t.parquet")
    assert good(tmp_path) == {"t:0": "one", "t:1": "two"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([("text", ["a"]), ("text", ["b"])], "needs a column `text`, it has 2"),
        ([("text", ["a"]), ("id", [1]), ("id", [2])], "needs a column `id`, it has 2"),
        ([("text", [["a"]])], "needs a string in `text`, got list"),
        ([("text", [{"x": "a"}])], "needs a string in `text`, got dict"),
    ],
)
def test_read_documents_of_a_table_without_one_text_names_it(
    tmp_path: Path, columns: list[tuple[str, list[object]]], expected: str
) -> None:
    table = pa.Table.from_arrays([pa.array(values) for _, values in columns], names=[name for name, _ in columns])
    pq.write_table(table, tmp_path / "t.parquet")
    write(tmp_path / "z.txt", "text")
    found = errors(tmp_path)
    assert found.pop("z") is None
    [message] = found.values()
    assert expected in (message or "")


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", ["txt", "jsonl", "json", "array"])
def test_read_documents_beyond_a_limit_fails_that_document_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, compression: str
) -> None:
    monkeypatch.setattr("longmem.text.opening.MAX_TEXT_BYTES", 100)
    monkeypatch.setattr("longmem.text.opening.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("longmem.text.opening.BLOCK_BYTES", 16)
    content = {
        "txt": b"x" * 101,
        "jsonl": line("one") + line("x" * 500) + line("three"),
        "json": line("one") + line("x" * 500) + line("three"),
        "array": b"[" + line("x" * 500) + b"]",
    }[form]
    suffix = "json" if form == "array" else form
    write(tmp_path / f"a.{suffix}{compression}", PACKED[compression](content))
    write(tmp_path / "z.txt", "y" * 100)
    found = errors(tmp_path)
    assert found.pop("z") is None
    if form in ("jsonl", "json"):
        assert (found.pop("a:1"), found.pop("a:3")) == (None, None)
    [message] = found.values()
    assert "100" in (message or "")
    assert "bytes" in (message or "")


def test_read_documents_beyond_a_limit_fails_that_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.text.opening.MAX_RECORD_BYTES", 1000)
    pq.write_table(pa.table({"text": ["one", "x" * 2000, "three"]}), tmp_path / "t.parquet")
    found = errors(tmp_path)
    assert (found.pop("t:0"), found.pop("t:2")) == (None, None)
    assert "a row may have 1,000" in (found["t:1"] or "")


# --- ignored files --------------------------------------------------------------------------------------------------


def test_find_files_counts_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("a.txt", "b.pdf", "c.PDF", "deep/d.pdf", "e.pdf", "Makefile", "x.tar.gz", "t.parquet.gz", "f.txt~"):
        write(tmp_path / name, "text")
    assert left_out(tmp_path) == {
        ".pdf": (4, ["b.pdf", "c.PDF", "e.pdf"]),
        "without suffix": (1, ["Makefile"]),
        ".tar.gz": (1, ["x.tar.gz"]),
        ".parquet.gz": (1, ["t.parquet.gz"]),
        ".txt~": (1, ["f.txt~"]),
    }
    assert str(find_files([str(tmp_path)]).left_out).startswith("1 .parquet.gz (t.parquet.gz), 4 .pdf (b.pdf,")


def test_find_files_never_takes_what_is_hidden(tmp_path: Path) -> None:
    inside = tmp_path / ".given" / "books"
    for name in ("a.txt", ".b.txt", "._a.txt", ".git/c.txt", "deep/.trash/d.txt", "__MACOSX/e.txt"):
        write(inside / name, "text")
    assert list(good(inside)) == ["a"]
    assert left_out(inside)["hidden"][0] == 5


def test_find_files_notes_next_to_tables_are_ignored(tmp_path: Path) -> None:
    notes = ["README.txt", "sub/LICENSE.txt", "readme-first.txt", "dataset_info.json"]
    for name in (*notes, "readmes.txt", "story.txt"):
        write(tmp_path / name, "a note")
    write(tmp_path / "a.jsonl", line("one"))
    assert list(good(tmp_path)) == ["a:1", "readmes", "story"]
    assert left_out(tmp_path)["note"][0] == 4
    (tmp_path / "a.jsonl").unlink()
    assert "README" in good(tmp_path), "a folder of texts alone is read whole"


def test_find_files_without_documents_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "text")
    write(tmp_path / ".b.txt", "text")
    with pytest.raises(ConfigError, match=r"holds no documents.*it holds 1 \.pdf \(a\.pdf\), 1 hidden \(\.b\.txt\)"):
        find_files([str(tmp_path)])


def test_find_files_leaves_out_what_has_no_bytes_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    os.mkfifo(tmp_path / "f.txt")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "round.txt").symlink_to("round.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # the address of a socket may have a hundred characters
        try:
            listener.bind("s.txt")
        finally:
            os.chdir(here)
    assert list(good(tmp_path)) == ["a"]
    assert left_out(tmp_path) == {
        "FIFO": (1, ["f.txt"]),
        "device": (1, ["null.txt"]),
        "socket": (1, ["s.txt"]),
        "broken link": (2, ["gone.txt", "round.txt"]),
    }
    with pytest.raises(ConfigError, match="is a FIFO: expected a regular file"):
        find_files([str(tmp_path / "f.txt")])


def test_read_documents_of_a_file_that_became_a_fifo_fails_at_once(tmp_path: Path) -> None:
    files = find_files([str(write(tmp_path / "a.txt", "text"))])
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    [document] = read_documents(files)
    assert isinstance(document, UnreadableDocument)
    assert "is a FIFO, expected a regular file" in str(document.error)


# --- links ----------------------------------------------------------------------------------------------------------


def test_find_files_follows_links_and_reads_every_file_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x.txt", "x")
    write(tmp_path / "books" / "real" / "a.txt", "a")
    books = tmp_path / "books"
    (books / "more").symlink_to("../elsewhere")
    (books / "more2").symlink_to("../elsewhere")
    (books / "again").symlink_to("real")
    (books / "again.txt").symlink_to("real/a.txt")
    (books / "real" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to("../books")
    assert good(books) == {"more/x": "x", "real/a": "a"}
    assert left_out(books) == {"read already": (5, ["again", "again.txt", "more2"])}


def test_find_files_of_one_file_given_twice_reads_it_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert good(path, tmp_path, path, tmp_path / "b.txt") == {"a": "text"}


# --- names ----------------------------------------------------------------------------------------------------------

ODD = ["a::b", "what? why", "#1", "100% sure", "vol [1]", "vol *", "-dash", "~tilde", "file:x", "s3", "{a,b}", " "]


def test_find_files_of_a_path_that_exists_is_local_whatever_it_spells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ODD:
        write(tmp_path / f"{name}.txt", name + "text")
    write(tmp_path / "memory:" / "x.txt", "not in memory")
    monkeypatch.chdir(tmp_path)
    assert good(*(f"{name}.txt" for name in ODD)) == {name: name + "text" for name in ODD}
    assert good(*(tmp_path / f"{name}.txt" for name in ODD)) == {name: name + "text" for name in ODD}
    assert good("memory://x.txt") == {"x": "not in memory"}
    assert good(tmp_path).keys() == {*ODD, "memory:/x"}


def test_find_files_of_an_empty_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="an input is empty"):
        find_files([""])


def test_find_files_of_one_name_in_several_folders_tells_them_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / number / "text.txt", number) for number in ("1342", "84")]
    assert good(*paths) == {"1342/text": "1342", "84/text": "84"}
    assert good(*(path.parent for path in paths)) == {"1342/text": "1342", "84/text": "84"}
    assert good(tmp_path) == {"1342/text": "1342", "84/text": "84"}


def test_find_files_of_other_names_leaves_ids_as_they_are(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, name) for name in ("x/a.txt", "y/a.txt", "x/b.txt", "z/y/a.txt")]
    table = write(tmp_path / "x" / "a.jsonl", line("row"))
    here = tmp_path.name
    assert list(good(*paths, table)) == ["x/a", f"{here}/y/a", "b", "z/y/a", "a:1"]


def test_find_files_of_one_name_with_several_suffixes_keeps_them(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "plain")
    write(tmp_path / "a.txt.gz", gzip.compress(b"packed"))
    write(tmp_path / "b.jsonl", line("lines"))
    write(tmp_path / "b.json", line("json"))
    assert good(tmp_path) == {"a.txt": "plain", "a.txt.gz": "packed", "b.json:1": "json", "b.jsonl:1": "lines"}


def test_read_documents_of_any_id_keeps_different_ones_apart(tmp_path: Path) -> None:
    long = "x" * 5000
    ids = [
        "",
        " ",
        "a/b",
        "../up",
        "nul\0id",
        long,
        "caf\u00e9",
        "cafe\u0301",
        1,
        "1",
        True,
        1.0,
        ["k"],
        {"k": 1},
        None,
    ]
    path = write(tmp_path / "n.jsonl", b"".join(line(f"text {number}", id=each) for number, each in enumerate(ids)))
    found = errors(path)
    bad = {name: message for name, message in found.items() if message}
    assert [name for name in found if name not in bad] == [
        *("n:1", "n:2", "a/b", "../up", "nul\0id", long, "caf\u00e9", "cafe\u0301", "1", "1.0", "n:15")
    ]
    assert list(bad) == [f"1 (again, {path} line 10)", "n:11", "n:13", "n:14"]
    assert "`id` must be a text or a number, got bool True" in bad["n:11"]


class ClientFailed(Exception):
    """Exception that is neither an OSError nor a ValueError, like those of most object-store clients."""


def test_remote_file_systems_that_raise_errors_of_their_own_are_named_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    with fsspec.open_files("memory://failing/*", "wb", num=2, name_function=lambda i: f"{i}.txt") as files:
        for number, file in enumerate(files):
            file.write(f"text {number}".encode())
    found = find_files(["memory://failing"])
    usual = MemoryFileSystem.open

    def fail(self: MemoryFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("0.txt"):
            raise ClientFailed("SlowDown")
        return usual(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "open", fail)
    first, second = read_documents(found)
    assert isinstance(first, UnreadableDocument)
    assert "memory://failing/0.txt: ClientFailed: SlowDown" in str(first.error)
    assert (second.id, getattr(second, "text", None)) == ("1", "text 1")

    def refuse(self: MemoryFileSystem, path: str, **kwargs: Any) -> Any:
        raise ClientFailed

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with pytest.raises(ConfigError, match="cannot open input memory://failing: ClientFailed"):
        find_files(["memory://failing"])
