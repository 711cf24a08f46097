# SPDX-License-Identifier: Apache-2.0
"""Reading documents: every format, every defect of a file, and no bad document hides another."""

import gzip
import json
import os
from pathlib import Path
from random import Random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longmem.errors import ConfigError, DocumentError
from longmem.text.documents import UnreadableDocument, find_files, read_documents
from longmem.types import Document


def read(*inputs: object) -> list[Document | UnreadableDocument]:
    return list(read_documents(find_files([str(each) for each in inputs])))


def good(*inputs: object) -> dict[str, str]:
    """Return texts by id of inputs without defects."""
    documents = read(*inputs)
    bad = [str(each.error) for each in documents if isinstance(each, UnreadableDocument)]
    assert bad == []
    return {each.id: each.text for each in documents if isinstance(each, Document)}


def outcome(*inputs: object) -> list[tuple[str, str | None]]:
    """Return (id, None) of a readable document, (id, message) of an unreadable one."""
    return [(each.id, str(each.error) if isinstance(each, UnreadableDocument) else None) for each in read(*inputs)]


def only_error(*inputs: object) -> str:
    [document] = read(*inputs)
    assert isinstance(document, UnreadableDocument)
    assert isinstance(document.error, DocumentError)
    return str(document.error)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_lines(path: Path, *values: object) -> Path:
    return write(path, "".join(json.dumps(value) + "\n" for value in values))


def write_table(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["book.jsonl", "book.json"])
def test_an_object_with_one_name_twice_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, '{"text": "the first", "text": "the second"}\n')
    assert "has the name 'text' twice" in only_error(path)


@pytest.mark.parametrize("given", ["", " ", "\u200b", "\ufeff\u200e", "\x07"])
def test_an_id_without_a_visible_character_is_none(given: str, tmp_path: Path) -> None:
    assert list(good(write_lines(tmp_path / "book.jsonl", {"id": given, "text": "some text"}))) == ["book:1"]


# --- formats ----------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_document_named_after_it(tmp_path: Path) -> None:
    path = write(tmp_path / "moby-dick.txt", "Call me Ishmael.\r\nSome years ago — never mind\n")
    [document] = read(path)
    assert document == Document("moby-dick", "Call me Ishmael.\r\nSome years ago — never mind\n", str(path))


def test_upper_case_suffixes_count(tmp_path: Path) -> None:
    assert good(write(tmp_path / "LOUD.TXT", "words")) == {"LOUD": "words"}


def test_a_folder_gives_its_text_files_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt"):
        write(tmp_path / name, f"text of {name}")
    write(tmp_path / "notes.md", "not a document")
    texts = good(tmp_path)
    assert list(texts) == ["a", "b", "deep/er/c"]
    assert texts["deep/er/c"] == "text of deep/er/c.txt"
    assert good(f"{tmp_path}/") == texts, "a slash at the end changes nothing"


def test_a_folder_without_text_files_gives_its_tables(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", {"text": "from lines"})
    write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"text": "from gzip"}\n'))
    write_table(tmp_path / "a.parquet", text=["from parquet"])
    assert good(tmp_path) == {"a:0": "from parquet", "b:1": "from lines", "c:1": "from gzip"}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines_are_documents_with_ids_given_or_numbered(tmp_path: Path, suffix: str) -> None:
    lines = '{"text": "one"}\n\n{"text": "two", "id": "second"}\r\n   \n{"text": "three", "id": 3, "more": []}'
    data = lines.encode()
    path = write(tmp_path / f"books{suffix}", data if suffix == ".jsonl" else gzip.compress(data))
    assert good(path) == {"books:1": "one", "second": "two", "3": "three"}
    assert [each.source for each in read(path)] == [f"{path} line {number}" for number in (1, 3, 5)]


def test_rows_are_documents_with_ids_given_or_numbered(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", other=[0, 0], text=["one", "two"], id=["first", None])
    assert good(path) == {"first": "one", "t:1": "two"}
    assert good(write_table(tmp_path / "n.parquet", text=["one", "two"])) == {"n:0": "one", "n:1": "two"}


def test_many_rows_keep_their_order_across_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [f"text {row}" for row in range(100)]}), path, row_group_size=7)
    assert good(path) == {f"t:{row}": f"text {row}" for row in range(100)}


def test_inputs_keep_the_order_given(tmp_path: Path) -> None:
    names = ("z", "a", "m")
    assert list(good(*(write(tmp_path / f"{name}.txt", name) for name in names))) == list(names)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert good(write(tmp_path / "a.txt", mark + b"text")) == {"a": "text"}
    assert good(write(tmp_path / "b.jsonl", mark + b'{"text": "text"}')) == {"b:1": "text"}


def test_files_may_be_named_by_uri(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    assert good(path.as_uri()) == {"a": "text"}
    assert good(tmp_path.as_uri()) == {"a": "text"}


def test_any_file_system_of_fsspec_will_do() -> None:
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe("/books/a.txt", b"one")
        memory.pipe("/books/deep/b.txt", b"two")
        assert good("memory://books") == {"a": "one", "deep/b": "two"}
        assert good("memory://books/a.txt") == {"a": "one"}
    finally:
        memory.rm("/books", recursive=True)


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", "one"), write(tmp_path / "b.txt", "two")
    documents = read_documents(find_files([str(first), str(second)]))
    assert next(documents).id == "a"
    second.write_text("written after the first one was read")
    document = next(documents)
    assert isinstance(document, Document)
    assert document.text.startswith("written after")


# --- found before any work begins -------------------------------------------------------------------------------


def test_a_missing_input_is_known_up_front(tmp_path: Path) -> None:
    there = write(tmp_path / "a.txt", "text")
    with pytest.raises(ConfigError, match=r"input not found: .*nothing\.txt"):
        find_files([str(there), str(tmp_path / "nothing.txt")])


def test_an_unknown_format_is_known_up_front(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.pdf has an unknown format: expected \.txt, \.jsonl"):
        find_files([str(write(tmp_path / "a.pdf", "%PDF"))])


@pytest.mark.parametrize("content", [{}, {"notes.md": "text"}])
def test_a_folder_without_documents_is_known_up_front(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=r"holds no documents: expected files named \*\.txt"):
        find_files([str(tmp_path)])


def test_an_unknown_protocol_is_known_up_front() -> None:
    with pytest.raises(ConfigError, match=r"cannot open input zork://books/a\.txt"):
        find_files(["zork://books/a.txt"])


# --- one bad document -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"  \n\t \r\n", b"\xef\xbb\xbf", "\u2003\u00a0".encode()])
def test_a_text_without_a_word_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.txt", content)
    assert only_error(path) == f"{path} is empty: expected some text"


def test_a_binary_file_is_refused_by_its_first_nul_byte(tmp_path: Path) -> None:
    assert "binary file (a NUL byte at 4)" in only_error(write(tmp_path / "a.txt", b"text\0more"))
    assert "binary file" in only_error(write(tmp_path / "b.txt", "UTF-16 text".encode("utf-16")))


@pytest.mark.parametrize(
    ("content", "position"), [(b"abc\xffdef", 3), (b"\x80", 0), ("naïve".encode("latin-1"), 2), (b"ab\xe2\x82", 2)]
)
def test_invalid_utf8_is_refused_with_its_place(tmp_path: Path, content: bytes, position: int) -> None:
    message = only_error(write(tmp_path / "a.txt", content))
    assert "not valid UTF-8" in message
    assert f"at byte {position};" in message


BAD_LINES = {
    "torn": ('{"text": "torn', "not valid JSON"),
    "no JSON": ("just words", "not valid JSON"),
    "list": ('["text"]', "must be a JSON object, got list"),
    "string": ('"text"', "must be a JSON object, got str"),
    "number": ("3", "must be a JSON object, got int"),
    "null": ("null", "must be a JSON object, got NoneType"),
    "no text": ('{"id": "x"}', "needs a string in `text`, got NoneType"),
    "text of a number": ('{"text": 3}', "needs a string in `text`, got int"),
    "text of a list": ('{"text": ["a"]}', "needs a string in `text`, got list"),
    "empty text": ('{"text": " \\n"}', "is empty: expected some text"),
    "half a surrogate pair": ('{"text": "a\\ud83d b"}', "not valid Unicode: surrogates not allowed at 1"),
    "nested without end": ("[" * 200_000, "not valid JSON"),
    "id of half a surrogate pair": ('{"text": "words", "id": "\\ud800"}', "not valid Unicode"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_the_others_go_on(tmp_path: Path, name: str) -> None:
    line, expected = BAD_LINES[name]
    path = write(tmp_path / "b.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "three", "id": "last"}}\n')
    (first, nothing), (bad, message), (last, nothing_either) = outcome(path)
    assert (first, nothing, last, nothing_either) == ("b:1", None, "last", None)
    assert message is not None
    assert f"{path} line 2" in message
    assert expected in message
    bad.encode()  # an unwritable id would end the job later


def test_invalid_utf8_in_a_line_is_refused_with_line_and_place(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n{"text": "three"}\n')
    (_, nothing), (name, message), (_, nothing_either) = outcome(path)
    assert (nothing, nothing_either, name) == (None, None, "b:2")
    assert message is not None
    assert "line 2 is not valid UTF-8: invalid start byte at byte 10" in message


def test_a_bad_row_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", text=["one", None, "", "four"], id=["a", "b", None, "d"])
    assert outcome(path) == [
        ("a", None),
        ("b", f"{path} row 1 needs a string in `text`, got NoneType"),
        ("t:2", f"{path} row 2 is empty: expected some text"),
        ("d", None),
    ]
    numbers = write_table(tmp_path / "n.parquet", text=[1])
    assert only_error(numbers) == f"{numbers} row 0 needs a string in `text`, got int"


def test_a_table_without_texts_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", content=["one"], id=["a"])
    assert only_error(path) == f"{path} needs a column `text`, it has ['content', 'id']"


def test_invalid_utf8_in_a_table_is_refused(tmp_path: Path) -> None:
    """Check invalid UTF-8: Parquet does not validate strings, and not every writer does."""
    offsets, data = pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    path = write_table(tmp_path / "t.parquet", text=pa.Array.from_buffers(pa.string(), 1, [None, offsets, data]))
    after = write(tmp_path / "z.txt", "text")
    (_, message), (name, nothing) = outcome(path, after)
    assert message is not None
    assert "t.parquet" in message
    assert (name, nothing) == ("z", None)


@pytest.mark.parametrize("second", ["again.jsonl", "again.parquet"])
def test_of_two_documents_with_one_id_the_first_is_taken(tmp_path: Path, second: str) -> None:
    first = write(tmp_path / "a.txt", "the first")
    other = tmp_path / "other" / second
    other.parent.mkdir()
    if second.endswith(".parquet"):
        write_table(other, text=["the second"], id=["a"])
    else:
        write_lines(other, {"text": "the second", "id": "a"})
    taken, refused = read(first, other)
    assert taken == Document("a", "the first", str(first))
    assert isinstance(refused, UnreadableDocument)
    assert f"the id 'a' was already used by {first}" in str(refused.error)
    assert refused.source.startswith(str(other))


def test_the_same_file_twice_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    found = find_files([str(path), str(tmp_path), str(path)])
    assert [file.path for file in found] == [str(path)]
    assert found.left_out.counts == {"read already": 2}


# --- damaged files ----------------------------------------------------------------------------------------------


def test_a_cut_off_gzip_file_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    noise = Random(0)
    lines = "".join(json.dumps({"text": noise.randbytes(20).hex(), "id": f"d{row}"}) + "\n" for row in range(5000))
    whole = gzip.compress(lines.encode())
    after = write(tmp_path / "z.txt", "text")
    *taken, (name, message), (last, nothing) = outcome(write(tmp_path / "b.jsonl.gz", whole[: len(whole) // 2]), after)
    assert 0 < len(taken) < 5000
    assert taken == [(f"d{row}", None) for row in range(len(taken))]
    assert name == "b"
    assert message is not None
    assert "cannot read" in message
    assert (last, nothing) == ("z", None)


def test_what_only_claims_to_be_gzip_is_refused(tmp_path: Path) -> None:
    assert "cannot read" in only_error(write(tmp_path / "b.jsonl.gz", b'{"text": "not compressed"}\n'))


def test_damage_inside_a_gzip_file_is_reported(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b'{"text": "' + Random(0).randbytes(4000).hex().encode() + b'"}\n'))
    data[len(data) // 2] ^= 0xFF
    assert any(message for _, message in outcome(write(tmp_path / "b.jsonl.gz", bytes(data))))


@pytest.mark.parametrize("damage", ["no table", "cut", "overwritten"])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: str) -> None:
    path = write_table(tmp_path / "t.parquet", text=["some words of a text " * 50 + str(row) for row in range(50)])
    data = path.read_bytes()
    if damage == "no table":
        data = b"PAR1 this is no table PAR1"
    elif damage == "cut":
        data = data[: len(data) // 2]
    else:
        data = data[:30] + b"\xff" * 40 + data[70:]
    after = write(tmp_path / "z.txt", "text")
    (_, message), (name, nothing) = outcome(write(path, data), after)
    assert message is not None
    assert f"cannot read {path}" in message
    assert (name, nothing) == ("z", None)


def test_a_file_that_vanishes_fails_alone(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.txt", "text") for name in "abc"]
    files = find_files([str(path) for path in paths])
    paths[1].unlink()
    first, gone, last = read_documents(files)
    assert isinstance(gone, UnreadableDocument)
    assert f"cannot read {paths[1]}" in str(gone.error)
    assert (first.id, last.id) == ("a", "c")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_that_holds_no_document_is_reported(tmp_path: Path, suffix: str) -> None:
    """Check that a job over an empty file does not end like a success."""
    path = tmp_path / f"empty{suffix}"
    if suffix == ".parquet":
        write_table(path, text=pa.array([], pa.string()))
    else:
        write(path, b"" if suffix == ".jsonl" else gzip.compress(b"\n \n"))
    assert str(path) in only_error(path)


def test_a_name_that_is_no_unicode_is_reported(tmp_path: Path) -> None:
    """Check arbitrary bytes in a file name, which Linux allows; an unwritable id would end the job later."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.txt")
    try:
        write(Path(name), "text")
    except OSError as error:
        pytest.skip(f"this file system refuses the name: {error}")
    write(tmp_path / "z.txt", "text")
    try:
        documents = read(tmp_path)
    except ConfigError:
        return  # refusing it at once is equally acceptable
    bad, well = documents
    assert isinstance(bad, UnreadableDocument)
    assert "not valid" in str(bad.error)
    for text in (bad.id, bad.source, str(bad.error)):
        text.encode()
    assert well.id == "z"
