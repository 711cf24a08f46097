# SPDX-License-Identifier: Apache-2.0
"""The data behind `longmem view`, its server and its export: against the whole tables, and against strangers."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from longmem.errors import ConfigError
from longmem.text.segments import cut_passages, cut_segments
from longmem.types import PLACES, DocumentKey, TokenReadings
from pipelines.app import app
from pipelines.job.output import write_json, write_table
from pipelines.perplexity.records import SegmentRecord, TokenScores
from pipelines.perplexity.tables import segments_table, tables_of_tokens
from pipelines.view import run_folder
from pipelines.view.answers import AROUND, EXTREMES, MOST_TOKENS, Answers
from pipelines.view.page import render
from pipelines.view.questions import BadRequestError
from pipelines.view.run_folder import RunFolder
from pipelines.view.server import ViewServer
from pipelines.view.tables import KEPT_GROUPS
from tests.served_pages import served

SEGMENT_TOKENS = 16
HOSTILE = '</script><script>document.title = "stolen"</script> & "quotes" \u202eright to left\u202c'
TEXTS = {"a-prose": "Call me Ishmael.\r\nSome years ago, naïve 中 😀. " * 9, "b-short": "x", "c <i>&": HOSTILE * 6}


def spans_of(text: str) -> list[tuple[int, int]]:
    """Cut a text into pieces of two characters, with a byte of its own for each further byte; spaces are no tokens."""
    spans = [(0, 0)]
    for first in range(0, len(text), 2):
        piece = text[first : first + 2]
        if piece.isspace():
            continue
        spans += [(first, first + len(piece))] * (2 if max(piece) > "\u0fff" else 1)
    return spans


def records_of(name: str, text: str, seed: int) -> list[SegmentRecord]:
    """Return records of a document whose tokens read random places."""
    random = np.random.default_rng(seed)
    spans = np.array(spans_of(text), np.int32)
    segments = cut_segments(DocumentKey("", name), np.arange(len(spans), dtype=np.int32), SEGMENT_TOKENS)
    records = []
    for segment, passage in zip(segments, cut_passages(text, spans, segments), strict=True):
        count, memory = len(segment.targets), segment.start_token
        logprobs = -random.random((3, count)).astype(np.float32) * 8
        places = random.integers(0, memory + 1, (count, PLACES)).astype(np.int32)
        found = (random.random((count, PLACES)) < 0.8).cumprod(axis=1).astype(bool) & (memory > 0)
        records.append(
            SegmentRecord(
                document=name,
                segment=segment.index,
                start_token=segment.start_token,
                num_tokens=count,
                nll_longmem=-float(logprobs[0].sum(dtype=np.float64)),
                nll_backbone=-float(logprobs[1].sum(dtype=np.float64)),
                memory_tokens=memory,
                gate_mean=0.0,
                copy_mean=0.1,
                distance_mean=3.0,
                empty_slots=0,
                distance_histogram=[1],
                chunks_digest="ab",
                tokens=TokenScores(
                    targets=segment.targets,
                    logprobs_longmem=logprobs[0],
                    logprobs_backbone=logprobs[1],
                    readings=TokenReadings(
                        copy_share=random.random(count, np.float32),
                        uncopied=logprobs[2],
                        copied=random.random(count, np.float32),
                        places=np.where(found, places, -1).astype(np.int32),
                        weights=np.where(found, np.float32(0.25), np.float32(0)),
                        runs=np.where(found, 3, 0).astype(np.uint8),
                        blocks=np.array([[1, 5], [8, memory]] if memory else [], np.int32).reshape(-1, 2),
                    ),
                    passage=passage,
                ),
            )
        )
    return records


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder as a job does, with row groups that end in the middle of documents and segments."""
    folder = tmp_path_factory.mktemp("run")
    records = [each for seed, (name, text) in enumerate(TEXTS.items()) for each in records_of(name, text, seed)]
    tables = {"segments": segments_table(records), **tables_of_tokens(records, None, pytest.fail)}
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table, {"tokens": 100, "readings": 29, "passages": 3}.get(name))
    summary = {
        "model": {"name": "small <b>"},
        "created": "2026-01-01T00:00:00+00:00",
        "perplexity": {},
        "change": {"value": -0.1, "low": None, "high": None},
        "settings": {"copy_head": True, "memory_layers": "all"},
    }
    write_json(folder / "summary.json", summary)
    return folder


@pytest.fixture(scope="module")
def answers(out: Path) -> Answers:
    return Answers(RunFolder(out))


def whole(out: Path, document: str) -> list[dict[str, Any]]:
    """Return the rows of a document, read whole."""
    tables = [pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("tokens", "readings")]
    return [{**first, **second} for first, second in zip(*tables, strict=True) if first["document"] == document]


def test_the_run_lists_its_documents(answers: Answers) -> None:
    run = answers.run()
    assert [(each["name"], each["first"], each["end"]) for each in run["documents"]] == [
        (name, 1, len(spans_of(text))) for name, text in TEXTS.items()
    ]
    assert (run["model"], run["change"], run["copies"], run["every_layer"]) == ("small <b>", -0.1, True, True)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_pages_of_any_size_join_to_the_text(answers: Answers, number: int) -> None:
    text = list(TEXTS.values())[number]
    count = len(spans_of(text))
    for size in (1, 7, 64, MOST_TOKENS):
        pages = [answers.page(number, first, size) for first in range(1, count, size)]
        joined = "".join(
            "".join(part for pair in zip(page["gaps"], page["texts"], strict=True) for part in pair) + page["rest"]
            for page in pages
        )
        assert joined == text
        assert sum(len(page["texts"]) for page in pages) == count - 1


def test_tokens_say_what_the_tables_say(answers: Answers, out: Path) -> None:
    for number, (name, text) in enumerate(TEXTS.items()):
        spans = spans_of(text)
        for row in whole(out, name):
            token = answers.token(number, row["position"])
            page = answers.page(number, row["position"], 1)
            assert (token["start"], token["start"] + token["length"]) == spans[row["position"]]
            assert page["texts"] == [token["text"]]
            for field, column in (
                ("with", "logprob_longmem"),
                ("without", "logprob_backbone"),
                ("share", "copy_share"),
            ):
                assert token[field] == pytest.approx(row[column], abs=1e-4)
            assert (page["with"], page["without"]) == ([token["with"]], [token["without"]])
            assert token["uncopied"] == pytest.approx(row["logprob_uncopied"], abs=1e-4)
            assert token["copied"] == pytest.approx(row["copied"], abs=1e-4)
            assert token["segment"] == (row["position"] - 1) // SEGMENT_TOKENS
            assert [place["position"] for place in token["places"]] == row["places"]
            assert [place["run"] for place in token["places"]] == row["runs"]


def test_places_are_shown_with_the_text_around_them(answers: Answers) -> None:
    text = TEXTS["a-prose"]
    spans = spans_of(text)
    seen = set()
    for position in range(1, len(spans)):
        for place in answers.token(0, position)["places"]:
            at = place["position"]
            seen.add(at)
            begin = spans[max(at - AROUND - 1, 0)][1]
            end = spans[min(at + AROUND, len(spans) - 1)][1]
            around = place["before"] + place["text"] + place["after"]
            assert around == (text[begin:end] if at else text[: spans[AROUND][1]]), at
            # later bytes of one character have no text of their own
            if at and spans[at] != spans[at - 1]:
                assert place["text"] == text[slice(*spans[at])]
    assert {0, 1} <= seen, "the start token, which is not predicted, and the first one"


def test_blocks_of_a_segment_begin_with_their_text(answers: Answers) -> None:
    text, spans = TEXTS["a-prose"], spans_of(TEXTS["a-prose"])
    assert answers.blocks(0, 0) == []
    first, second = answers.blocks(0, 2)
    assert (first["first"], first["end"], first["text"]) == (1, 5, text[: spans[4][1]])
    assert (second["first"], second["end"]) == (8, 32)
    assert text[spans[7][1] :].startswith(second["text"])
    with pytest.raises(BadRequestError, match="segments 0 to"):
        answers.blocks(0, 99)


@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_are_those_of_all_gains(
    answers: Answers, out: Path, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "SCAN_ROWS", 37)
    for number, name in enumerate(TEXTS):
        gains = {row["position"]: sign * (row["logprob_longmem"] - row["logprob_backbone"]) for row in whole(out, name)}
        expected = sorted((gain for gain in gains.values() if gain > 0), reverse=True)[:EXTREMES]
        listed = answers.extremes(number, sign)
        assert [sign * each["gain"] for each in listed] == pytest.approx(expected, abs=1e-4)
        for each in listed:
            assert sign * each["gain"] == pytest.approx(gains[each["position"]], abs=1e-4)
            assert each["text"] == answers.token(number, each["position"])["text"]


def test_equal_extremes_come_in_the_order_of_the_text(out: Path, tmp_path: Path) -> None:
    table = pq.read_table(out / "tokens.parquet")
    gains = np.tile(np.array([1, 3, 2, 3], np.float32), len(table))[: len(table)]
    equal = copy_of(out, tmp_path / "equal")
    for name, column in (("logprob_longmem", gains - 9), ("logprob_backbone", np.full(len(table), -9, np.float32))):
        table = table.set_column(table.schema.get_field_index(name), name, [column])
    write_table(equal / "tokens.parquet", table)
    listed = [each["position"] for each in Answers(RunFolder(equal)).extremes(0, 1)]
    assert len(listed) > 100
    values = gains[np.array(listed) - 1]
    assert listed == sorted(listed, key=lambda position: (-gains[position - 1], position))
    assert set(values.tolist()) == {1, 2, 3}


def test_the_overview_has_the_mean_gain_of_each_part(
    answers: Answers, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.view.answers.OVERVIEW_BINS", 4)
    rows = whole(out, "a-prose")
    found = answers.overview(0)
    assert 1 < len(found["firsts"]) <= 4
    for first, end, gain in zip(found["firsts"], [*found["firsts"][1:], len(rows) + 1], found["gains"], strict=True):
        part = [row["logprob_longmem"] - row["logprob_backbone"] for row in rows if first <= row["position"] < end]
        assert gain == pytest.approx(sum(part) / len(part), abs=1e-4)


def test_at_most_a_few_row_groups_stay_in_memory(out: Path) -> None:
    folder = RunFolder(out)
    [document, *_] = folder.documents
    for first in range(1, document.end_position, 10):
        folder.tokens(document, first, min(first + 10, document.end_position))
    kept = [table._group.cache_info() for table in (folder._tokens, folder._readings)]
    assert all(each.currsize <= KEPT_GROUPS for each in kept)
    assert kept[1].misses > KEPT_GROUPS, "else nothing had to go"


# --- folders that cannot be shown -------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        RunFolder(folder)
    return str(refused.value)


def copy_of(out: Path, folder: Path, *left_out: str) -> Path:
    folder.mkdir()
    for path in out.iterdir():
        if path.name not in left_out:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_folder_without_readings_says_how_to_get_them(out: Path, tmp_path: Path) -> None:
    assert "--tokens" in refusal(copy_of(out, tmp_path / "plain", "readings.parquet", "passages.parquet"))
    assert "is no folder" in refusal(tmp_path / "absent")
    (tmp_path / "icl").mkdir()
    write_json(tmp_path / "icl" / "summary.json", {"model": {"name": "a"}, "grid": []})
    assert "another kind of job" in refusal(tmp_path / "icl")


def test_damaged_and_foreign_tables_are_refused(out: Path, tmp_path: Path) -> None:
    damaged = copy_of(out, tmp_path / "damaged")
    (damaged / "readings.parquet").write_bytes(b"PAR1 cut off")
    assert "cannot read the tables" in refusal(damaged)
    earlier = copy_of(out, tmp_path / "earlier")
    write_table(earlier / "readings.parquet", pq.read_table(out / "readings.parquet").drop_columns(["copied", "runs"]))
    assert "lack copied, runs: another version" in refusal(earlier)
    foreign = copy_of(out, tmp_path / "foreign")
    write_table(foreign / "tokens.parquet", pq.read_table(out / "tokens.parquet").slice(1))
    assert "not of one job" in refusal(foreign)


# --- server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(answers: Answers) -> Iterator[ViewServer]:
    with served(answers, render("small <b>")) as server:
        yield server


def ask(server: ViewServer, path: str, host: str | None = None, method: str = "GET") -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, body, reply.headers


def test_the_server_answers_as_the_answers_do(server: ViewServer, answers: Answers) -> None:
    status, body, headers = ask(server, f"/{server.key}/page?document=2&first=3&count=20")
    assert (status, json.loads(body)) == (200, answers.page(2, 3, 20))
    assert headers["Content-Type"] == "application/json"
    for name, expected in (("run", answers.run()), ("overview?document=1", answers.overview(1))):
        assert json.loads(ask(server, f"/{server.key}/{name}")[1]) == expected
    token = json.loads(ask(server, f"/{server.key}/token?document=0&position=40")[1])
    assert token == answers.token(0, 40)
    lost = json.loads(ask(server, f"/{server.key}/extremes?document=0&sign=-1")[1])
    assert lost == answers.extremes(0, -1)
    assert json.loads(ask(server, f"/{server.key}/blocks?document=0&segment=1")[1]) == answers.blocks(0, 1)
    status, body, headers = ask(server, f"/{server.key}/")
    assert (status, body.decode()) == (200, render("small <b>"))
    assert "small &lt;b&gt;" in body.decode()
    assert headers["Cache-Control"] == "no-store"


def test_only_this_machine_by_its_own_name_gets_an_answer(server: ViewServer) -> None:
    page = f"/{server.key}/"
    assert server.socket.getsockname()[0] == "127.0.0.1"
    for host in ("127.0.0.1", "localhost", f"localhost:{server.server_port}", "localhost:9999"):
        assert ask(server, page, host)[0] == 200
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", "", "[::1"):
        status, body, _ = ask(server, page, host)
        assert status in (400, 421), host
        assert b"<html" not in body


def test_only_who_knows_the_key_gets_an_answer(server: ViewServer) -> None:
    for path in ("/", "/page?document=0&first=1&count=9", "/wrong/", f"/{server.key[:-1]}/run"):
        status, body, _ = ask(server, path)
        assert (status, server.key.encode() in body) == (404, False), path


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "summary.json", "readings.parquet", "page/../run", "..%2frun"],
)
def test_nothing_but_the_answers_can_be_reached(server: ViewServer, path: str) -> None:
    status, body, _ = ask(server, f"/{server.key}/{path}")
    assert status == 404
    assert "error" in json.loads(body)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("page?document=0&first=1", "count must be a whole number"),
        ("page?document=x&first=1&count=1", "document must be a whole number, got 'x'"),
        ("page?document=3&first=1&count=1", "documents 0 to 2, got 3"),
        ("page?document=-1&first=1&count=1", "documents 0 to 2, got -1"),
        ("token?document=0&position=0", "has tokens 1 to"),
        ("token?document=0&position=99999999999999999999", "has tokens 1 to"),
        ("blocks?document=0&segment=-1", "segments 0 to"),
    ],
)
def test_a_bad_question_is_told(server: ViewServer, query: str, words: str) -> None:
    status, body, _ = ask(server, f"/{server.key}/{query}")
    assert status == 400
    assert words in json.loads(body)["error"]


def test_a_page_without_end_is_cut(server: ViewServer) -> None:
    found = json.loads(ask(server, f"/{server.key}/page?document=0&first=-5&count=99999999")[1])
    assert (found["first"], len(found["texts"])) == (1, len(spans_of(TEXTS["a-prose"])) - 1)
    found = json.loads(ask(server, f"/{server.key}/page?document=0&first=99999999&count=9")[1])
    assert found["texts"] == []


def test_nothing_can_be_sent(server: ViewServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, f"/{server.key}/run", method=method)[0] == 501
    status, body, headers = ask(server, f"/{server.key}/run", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 100


def test_a_port_in_use_is_told(answers: Answers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be used"):
            ViewServer(answers, "", port)


# --- command and export -----------------------------------------------------------------------------------------


def run_command(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["view", *map(str, arguments)], prog_name="longmem")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout + result.stderr


def held(page: str) -> dict[str, Any]:
    """Return the data that an exported page holds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_an_exported_passage_holds_its_tokens_and_loads_nothing(out: Path, tmp_path: Path, answers: Answers) -> None:
    options = ["--document", "c <i>&", "--from", 20, "--to", 60]
    code, said = run_command(out, "--export", tmp_path / "passage.html", *options)
    assert (code, said) == (0, f"{tmp_path / 'passage.html'} holds 40 tokens\n")
    page = (tmp_path / "passage.html").read_text("utf-8")
    data = held(page)
    assert data["page"] == answers.page(2, 20, 40)
    assert {int(position) for position in data["tokens"]} == set(range(20, 60))
    assert data["tokens"]["33"] == answers.token(2, 33)
    assert data["blocks"]["2"] == answers.blocks(2, 2)
    # a hostile text ends no element
    assert page.count("</script>") == 2
    assert not re.search(
        r"https?://|//[a-z]|@import|url\(", re.sub(r"(?m)^ *//.*$", "", page.replace(json.dumps(data), ""))
    )


def test_the_exported_passage_is_the_only_document_by_default(out: Path, tmp_path: Path) -> None:
    code, said = run_command(out, "--export", tmp_path / "passage.html")
    assert code == 2
    assert "a-prose, b-short, c <i>&" in said
    assert not (tmp_path / "passage.html").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--document", "a-prose"], "--export FILE"),
        (["--from", 3], "--export FILE"),
        (["--export", "x.html", "--document", "nobody"], "nobody is not among them"),
        (
            ["--export", "x.html", "--document", "a-prose", "--from", 9, "--to", 9],
            "--to must be after --from, got 9 and 9",
        ),
        (["--export", "x.html", "--document", "a-prose", "--to", 30_000], "got 29,999"),
        (["--export", "x.html", "--document", "b-short", "--from", 7], "after the last token of the document, 1"),
        (["--export", "absent/x.html", "--document", "b-short"], "choose another --export"),
        (["--export", "tokens.parquet", "--document", "b-short"], "a name that ends in .html"),
        (["--export", "x.html", "--document", "b-short", "--from", 0], "--from"),
        (["--port", 70_000], "--port"),
    ],
)
def test_wrong_options_are_told(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run_command(out, *options)
    assert code == 2
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_told_by_the_command(tmp_path: Path) -> None:
    code, said = run_command(tmp_path / "absent")
    assert code == 2
    assert "is no folder" in said


def test_the_window_baseline_is_shown_where_there_is_one(out: Path, tmp_path: Path) -> None:
    table = pq.read_table(out / "tokens.parquet")
    with_window = copy_of(out, tmp_path / "window")
    column = table["logprob_backbone"]
    write_table(with_window / "tokens.parquet", table.append_column("logprob_window", column))
    token = Answers(RunFolder(with_window)).token(0, 5)
    assert token["window"] == token["without"]
    assert Answers(RunFolder(out)).token(0, 5)["window"] is None


def test_segments_of_a_document_may_have_no_target(tmp_path: Path) -> None:
    """Check a last segment of one token, which has no target, and a first position that is 1 all the same."""
    text = "ab" * SEGMENT_TOKENS
    records = records_of("even", text, 0)
    assert [record.num_tokens for record in records] == [SEGMENT_TOKENS, 0]
    records = [replace(each) for each in records]
    for name, table in {"segments": segments_table(records), **tables_of_tokens(records, None, pytest.fail)}.items():
        write_table(tmp_path / f"{name}.parquet", table)
    write_json(tmp_path / "summary.json", {"model": {"name": "m"}, "perplexity": {}})
    answers = Answers(RunFolder(tmp_path))
    page = answers.page(0, 1, 100)
    assert "".join(page["texts"]) + page["rest"] == text
    assert answers.token(0, SEGMENT_TOKENS)["segment"] == 0
    assert answers.run()["change"] is None
