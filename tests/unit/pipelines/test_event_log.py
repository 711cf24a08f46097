# SPDX-License-Identifier: Apache-2.0
"""The lines of log.jsonl, and content that they must never have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longmem.errors import DocumentError, OutputError
from longmem.runtime.executor import Completion, ExecutorEvent
from longmem.system.redaction import redacted
from longmem.types import DocumentKey, Segment
from pipelines.job.event_log import EventLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "log.jsonl", "1f")
    yield log
    log.close()


def test_every_event_is_one_line_with_its_fields(log: EventLog, tmp_path: Path) -> None:
    segment = Segment(DocumentKey("n", "moby"), 7, 0, np.zeros(2, np.int32), np.zeros(2, np.int32))
    log.started("longmem perplexity", resumed=False)
    log.admitted("moby", 100, 4)
    log.task_ended(Completion("put", segment, None, DocumentError("disk"), 0.1))
    log.worker_event(ExecutorEvent("stalled", "silent", "reader-1", "score"))
    log.worker_event(ExecutorEvent("encoded again", "lost", "", "put", segment))
    log.document_ended("moby", None, kept=False)
    log.document_ended("emma", DocumentError("no text"), kept=False)
    log.close()
    found = lines(tmp_path / "log.jsonl")
    assert [each["event"] for each in found] == [
        "job_started",
        "document_admitted",
        "task_failed",
        "worker_stalled",
        "worker_encoded_again",
        "document_scored",
        "document_failed",
    ]
    assert {each["job"] for each in found} == {"1f"}
    assert {"longmem", "python", "ray", "torch"} <= set(found[0]["versions"])
    assert {name: found[2][name] for name in ("document", "segment", "stage", "level", "message")} == {
        "document": "moby",
        "segment": 7,
        "stage": "put",
        "level": "error",
        "message": "disk",
    }
    assert found[3]["worker"] == "reader-1"
    assert found[3]["level"] == "warning"
    assert "document" not in found[3]
    assert (found[4]["document"], found[4]["segment"]) == ("moby", 7)
    assert "worker" not in found[4]


def test_a_task_that_ends_well_is_no_event(log: EventLog, tmp_path: Path) -> None:
    segment = Segment(DocumentKey("n", "moby"), 7, 0, np.zeros(2, np.int32), np.zeros(2, np.int32))
    log.task_ended(Completion("put", segment, None, None, 0.1))
    assert lines(tmp_path / "log.jsonl") == []


def test_a_name_cannot_end_a_line_or_reach_a_terminal(log: EventLog, tmp_path: Path) -> None:
    name = 'a\n{"event": "forged"}\x1b[2J\u2028\udcff'
    log.admitted(name, 1, 1)
    data = (tmp_path / "log.jsonl").read_bytes()
    assert data.count(b"\n") == 1
    assert b"\x1b" not in data
    assert lines(tmp_path / "log.jsonl")[0]["document"] == name


def test_a_resumed_job_goes_on_in_the_same_file(log: EventLog, tmp_path: Path) -> None:
    log.event("one", "")
    log.close()
    again = EventLog(tmp_path / "log.jsonl", "1f")
    again.started("longmem perplexity --resume", resumed=True)
    again.close()
    assert [each["event"] for each in lines(tmp_path / "log.jsonl")] == ["one", "job_resumed"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"log\.jsonl"):
        EventLog(tmp_path / "absent" / "log.jsonl", "1f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/books/", "s3://***@bucket/books/"),
        ("https://me@host/x", "https://***@host/x"),
        ("https://me:p%40ss:w@host:80/x@y", "https://***@host:80/x@y"),
        ("--store 's3://a:b@c' and gs://d:e@f/g", "--store 's3://***@c' and gs://***@f/g"),
        ("https://h/x?page=2&access_token=abc&n=1", "https://h/x?page=2&access_token=***&n=1"),
        ("https://h/x?sig=abc%3D;X-Amz-Signature=12", "https://h/x?sig=***;X-Amz-Signature=***"),
        ("az://c/x?sv=1&SIG=s#frag", "az://c/x?sv=1&SIG=***#frag"),
    ],
)
def test_secrets_are_hidden(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/books/moby dick.txt",
        "write to ahab@pequod.example",
        "https://host/a?page=2&size=9",
        "https://host/@user/post",
        "file:///home/a@b/c",
        "longmem perplexity books --top-k 64",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_what_is_logged_is_redacted(log: EventLog, tmp_path: Path) -> None:
    log.started("longmem perplexity s3://key:secret@bucket/books?token=t0p", resumed=False)
    log.document_ended("moby", DocumentError("cannot read s3://key:secret@bucket"), kept=False)
    log.worker_event(ExecutorEvent("retry", "s3://key:secret@bucket", "", "put"))
    data = (tmp_path / "log.jsonl").read_text()
    assert "secret" not in data
    assert "t0p" not in data
    assert data.count("***") == 4
