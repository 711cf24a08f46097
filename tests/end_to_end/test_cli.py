# SPDX-License-Identifier: Apache-2.0
"""The `longmem` command from a user's point of view: real models, stores and files; valid and invalid input.

Tests that need a process (kill, Ctrl-C, exit code of the shell) run the installed script. All others run the
application in this process, which saves four seconds of importing torch per call.
"""

import gzip
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import DocumentError
from longmem.model.source import REFERENCE_MODEL
from longmem.store.config import MemoryStore
from longmem.testing import small_longmem
from longmem.types import DocumentKey
from pipelines.cli import app
from tests.folders import snapshot

LONGMEM = Path(sys.executable).parent / "longmem"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}
SEGMENT_TOKENS = 32
TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not LONGMEM.exists(), reason="longmem is not installed in this environment"),
]


def prose(seed: int, num_bytes: int) -> str:
    words = ["whale", "sea", "the", "of", "a", "ship", "harpoon", "naïve", "Ahab,", "and", "1851.", "white"]
    random = np.random.default_rng(seed)
    text = " ".join(random.choice(words, num_bytes))
    return text.encode()[:num_bytes].decode(errors="ignore")


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def arguments(inputs: object, model: Path, out: Path | None, *options: object) -> list[str]:
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    parts: list[object] = ["perplexity", *given, "--model", model, "--address", "none", "--threads", 1, *options]
    return [str(part) for part in (parts if out is None else [*parts, "--out", out])]


def invoke(*args: str) -> Outcome:
    """Run the application in this process. Raise an exception that would have been a traceback."""
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, list(args), prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def start(*args: str) -> "subprocess.Popen[str]":
    # background jobs of a shell ignore Ctrl-C, and so would all their children
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [str(LONGMEM), *args], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, ours)


def run_process(*args: str) -> Outcome:
    with start(*args) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    return Outcome(process.returncode, stdout, stderr)


def summary_of(out: Path) -> dict[str, Any]:
    summary = json.loads((out / "summary.json").read_text())
    assert isinstance(summary, dict)
    return summary


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return table


def table_bytes(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES if (out / name).exists()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `trained` (memory moves its results), `untrained` (equals its backbone), and their `backbone`."""
    folder = tmp_path_factory.mktemp("models")
    for name, unsettled in (("trained", True), ("untrained", False)):
        small_longmem(folder, unsettled=unsettled).save_pretrained(folder / name)
    shutil.move(folder / "llama-0", folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return models / "trained"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write books with lengths around the boundaries: less than a chunk, about one segment, many segments."""
    folder = tmp_path_factory.mktemp("books")
    for index, (name, num_bytes) in enumerate(
        {
            "a-long": 500,
            "b-one-character": 1,
            "c-less-than-a-chunk": 2,
            "d-a-segment": 31,
            "e-border": 32,
            "f": 150,
        }.items()
    ):
        (folder / f"{name}.txt").write_text("x" * num_bytes if num_bytes < 40 else prose(index, num_bytes), "utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(model: Path, books: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """Return the outcome and folder of a finished job. Read-only: copy the folder before changing it.

    `test_wheel.py` runs one as a process.
    """
    out = tmp_path_factory.mktemp("finished") / "out"
    return invoke(*arguments(books, model, out, "--tokens")), out


@pytest.fixture
def copied(finished: tuple[Outcome, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1], tmp_path / "copied"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(prose(0, 200), "utf-8")
    return path


# --- the happy path ---------------------------------------------------------------------------------------------


def test_a_job_ends_well_and_leaves_its_results(finished: tuple[Outcome, Path], books: Path) -> None:
    outcome, out = finished
    assert outcome.code == 0, outcome.stderr
    assert sorted(each.name for each in out.iterdir()) == [
        "documents.parquet",
        "job.json",
        "job.lock",
        "journal.jsonl",
        "log.jsonl",
        "passages.parquet",
        "readings.parquet",
        "report.html",
        "segments.parquet",
        "slices.json",
        "status.json",
        "summary.json",
        "tokens.parquet",
    ], "and no memory, which was not to be kept"
    for words in ("per token", "per word", "per byte", "with memory", "without memory", "report.html", "longmem view"):
        assert words in outcome.stdout
    assert "documents 6" in outcome.stderr
    assert "<html" in (out / "report.html").read_text("utf-8")


def test_the_summary_counts_what_was_given(finished: tuple[Outcome, Path], books: Path) -> None:
    _, out = finished
    texts = [path.read_text("utf-8") for path in sorted(books.iterdir())]
    # the byte tokenizer: a start token, then one token for every byte, each predicted once
    num_bytes = [len(each.encode()) for each in texts]
    counts = summary_of(out)["counts"]
    assert counts == {
        "documents": 6,
        "failed_documents": 0,
        "segments": sum(-(-(n + 1) // SEGMENT_TOKENS) for n in num_bytes),
        "tokens": sum(num_bytes),
        "unscored_tokens": 0,
        "words": sum(len(each.split()) for each in texts),
        "bytes": sum(num_bytes),
    }
    assert [(row["document"], row["num_bytes"]) for row in rows(out, "documents")] == [
        (path.stem, n) for path, n in zip(sorted(books.iterdir()), num_bytes, strict=True)
    ]
    stages = summary_of(out)["stages"]
    assert {stage: each["segments"] for stage, each in stages.items()} == dict.fromkeys(stages, counts["segments"])


def test_every_token_is_scored_once_and_counted_once(finished: tuple[Outcome, Path], books: Path) -> None:
    _, out = finished
    tokens = rows(out, "tokens")
    for path in books.iterdir():
        mine = [row for row in tokens if row["document"] == path.stem]
        data = path.read_bytes()
        assert [row["position"] for row in mine] == list(range(1, len(data) + 1))
        assert [row["segment"] for row in mine] == [(row["position"] - 1) // SEGMENT_TOKENS for row in mine]
    for segment in rows(out, "segments"):
        place = (segment["document"], segment["segment"])
        mine = [row for row in tokens if (row["document"], row["segment"]) == place]
        assert len(mine) == segment["num_tokens"]
        for side in ("longmem", "backbone"):
            total = -math.fsum(row[f"logprob_{side}"] for row in mine)
            assert segment[f"nll_{side}"] == pytest.approx(total, rel=1e-9, abs=1e-9)
        assert segment["memory_tokens"] == min(96, segment["start_token"])


def test_readings_say_where_each_token_is_and_what_it_read(finished: tuple[Outcome, Path], books: Path) -> None:
    _, out = finished
    tokens, readings, passages = rows(out, "tokens"), rows(out, "readings"), rows(out, "passages")
    names = ("document", "segment", "position")
    assert [[row[name] for name in names] for row in readings] == [[row[name] for name in names] for row in tokens]
    texts = {path.stem: path.read_text("utf-8") for path in books.iterdir()}
    for name, text in texts.items():
        assert "".join(row["passage"] for row in passages if row["document"] == name) == text
    memory = {(row["document"], row["segment"]): row["memory_tokens"] for row in rows(out, "segments")}
    # the byte tokenizer: position n is byte n - 1, which belongs to one character
    characters = {
        name: [at for at, character in enumerate(text) for _ in character.encode()] for name, text in texts.items()
    }
    for row in readings:
        assert (row["start"], row["length"]) == (characters[row["document"]][row["position"] - 1], 1)
        assert len(row["places"]) == len(row["weights"]) == len(row["runs"])
        assert bool(row["places"]) == bool(memory[row["document"], row["segment"]])
        assert all(0 <= place < row["position"] for place in row["places"])


def test_perplexities_are_those_of_the_tokens(finished: tuple[Outcome, Path]) -> None:
    _, out = finished
    summary, tokens = summary_of(out), rows(out, "tokens")
    for side in ("longmem", "backbone"):
        nats = -math.fsum(row[f"logprob_{side}"] for row in tokens)
        assert summary["nats"][side] == pytest.approx(nats, rel=1e-9)
        for unit in ("token", "word", "byte"):
            expected = math.exp(nats / summary["counts"][f"{unit}s"])
            assert summary["perplexity"][unit][side]["value"] == pytest.approx(expected, rel=1e-7)
        assert summary["bits_per_byte"][side] == pytest.approx(nats / math.log(2) / summary["counts"]["bytes"])
    ratio = summary["perplexity"]["token"]["longmem"]["value"] / summary["perplexity"]["token"]["backbone"]["value"]
    assert summary["change"]["value"] == pytest.approx(ratio - 1)
    assert abs(summary["change"]["value"]) > 1e-3, "this model's memory moves results, else the tests prove little"


def test_the_baseline_is_the_backbone_in_plain_transformers(
    finished: tuple[Outcome, Path], models: Path, books: Path
) -> None:
    _, out = finished
    plain = AutoModelForCausalLM.from_pretrained(models / "backbone", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "backbone")
    nats, num_tokens = 0.0, 0
    for path in sorted(books.iterdir()):
        ids = tokenizer(path.read_text("utf-8"), add_special_tokens=False)["input_ids"]
        ids = torch.tensor([tokenizer.bos_token_id, *ids])
        for first in range(0, len(ids), SEGMENT_TOKENS):
            read, predicted = ids[first : first + SEGMENT_TOKENS], ids[first + 1 : first + SEGMENT_TOKENS + 1]
            with torch.no_grad():
                logits = plain(read[None]).logits[0, : len(predicted)].double()
            nats += float(torch.nn.functional.cross_entropy(logits, predicted, reduction="sum"))
            num_tokens += len(predicted)
    found = summary_of(out)["perplexity"]["token"]["backbone"]["value"]
    assert found == pytest.approx(math.exp(nats / num_tokens), rel=1e-4)


def test_an_untrained_model_without_a_copy_head_is_its_backbone(models: Path, text: Path, tmp_path: Path) -> None:
    outcome = invoke(*arguments(text, models / "untrained", tmp_path / "out", "--store", "memory://"))
    assert outcome.code == 0
    assert "an untrained SideNet equals its backbone" in outcome.stdout
    token = summary_of(tmp_path / "out")["perplexity"]["token"]
    assert token["longmem"]["value"] == pytest.approx(token["backbone"]["value"], rel=1e-6)
    segments = rows(tmp_path / "out", "segments")
    assert any(row["memory_tokens"] for row in segments)
    assert {row["copy_mean"] for row in segments} == {0.0}


def test_a_backbone_alone_gets_memory_from_an_untrained_copy_head(models: Path, text: Path, tmp_path: Path) -> None:
    options = ["--store", "memory://", "--segment-tokens", 32, "--memory-tokens", 96]
    outcome = invoke(*arguments(text, models / "backbone", tmp_path / "out", *options))
    assert outcome.code == 0
    assert "untrained copy head alone" in outcome.stdout
    assert "untrained copy head alone" in (tmp_path / "out" / "report.html").read_text("utf-8")
    token = summary_of(tmp_path / "out")["perplexity"]["token"]
    # the text repeats a few words
    assert token["longmem"]["value"] < 0.99 * token["backbone"]["value"]
    for row in rows(tmp_path / "out", "segments"):
        assert (0 < row["copy_mean"] < 1) == (row["memory_tokens"] > 0)


def test_the_reference_model_reads_better_with_its_memory(tmp_path: Path) -> None:
    """Run what `make demo` shows, on a short text."""
    book = tmp_path / "book.txt"
    book.write_text("Call me Ishmael. Some years ago, never mind how long precisely, having little money. " * 80)
    outcome = invoke(*arguments(book, REFERENCE_MODEL, tmp_path / "out", "--store", "memory://"))
    assert outcome.code == 0
    token = summary_of(tmp_path / "out")["perplexity"]["token"]
    assert summary_of(tmp_path / "out")["counts"]["segments"] > 2
    assert token["longmem"]["value"] < token["backbone"]["value"]


def test_how_it_runs_does_not_change_what_comes_out(
    finished: tuple[Outcome, Path], model: Path, books: Path, tmp_path: Path
) -> None:
    """Compare with another store and limits in process (byte-identical) and another search engine (float tolerance)."""
    _, expected = finished
    options = ["--tokens", "--store", "memory://"]
    out = tmp_path / "memory"
    assert invoke(*arguments(books, model, out, *options, "--max-in-flight-segments", 1)).code == 0
    assert table_bytes(out) == table_bytes(expected)

    out = tmp_path / "faiss"
    assert invoke(*arguments(books, model, out, *options, "--search", "faiss")).code == 0
    for ours, theirs in zip(rows(out, "tokens"), rows(expected, "tokens"), strict=True):
        assert ours["logprob_longmem"] == pytest.approx(theirs["logprob_longmem"], abs=1e-5)
        assert ours["logprob_backbone"] == theirs["logprob_backbone"]
    for ours, theirs in zip(rows(out, "segments"), rows(expected, "segments"), strict=True):
        assert ours["chunks_digest"] == theirs["chunks_digest"]


def test_without_memory_nothing_is_read_or_written(model: Path, text: Path, tmp_path: Path) -> None:
    assert invoke(*arguments(text, model, tmp_path / "out", "--no-memory")).code == 0
    segments = rows(tmp_path / "out", "segments")
    read = {
        (row["memory_tokens"], row["gate_mean"], row["copy_mean"], sum(row["distance_histogram"])) for row in segments
    }
    assert read == {(0, 0, 0, 0)}
    assert summary_of(tmp_path / "out")["stages"]["put"]["segments"] == 0
    assert not (tmp_path / "out" / "tokens.parquet").exists()


def test_limit_documents_takes_the_first_ones(
    finished: tuple[Outcome, Path], model: Path, books: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert invoke(*arguments(books, model, out, "--limit-documents", 2, "--store", "memory://")).code == 0
    assert [row["document"] for row in rows(out, "documents")] == ["a-long", "b-one-character"]
    everything = rows(finished[1], "segments")
    assert rows(out, "segments") == [row for row in everything if row["document"] in ("a-long", "b-one-character")]


def test_limit_tokens_scores_what_a_shorter_text_has(model: Path, text: Path, tmp_path: Path) -> None:
    limited = arguments(text, model, tmp_path / "limited", "--limit-tokens", 40, "--tokens", "--store", "memory://")
    assert invoke(*limited).code == 0
    scored = "".join(row["passage"] for row in rows(tmp_path / "limited", "passages"))
    assert text.read_text().startswith(scored)
    assert json.loads((tmp_path / "limited" / "summary.json").read_text())["limits"] == {"tokens": 40}
    report = (tmp_path / "limited" / "report.html").read_text()
    assert "Limited to the first 40 tokens of each document." in report
    (document,) = rows(tmp_path / "limited", "documents")
    assert (document["num_tokens"] + document["num_unscored_tokens"], document["num_bytes"]) == (
        40,
        len(scored.encode()),
    )
    shorter = tmp_path / text.name
    shorter.write_text(scored)
    assert invoke(*arguments(shorter, model, tmp_path / "short", "--store", "memory://")).code == 0
    assert rows(tmp_path / "limited", "segments") == rows(tmp_path / "short", "segments")
    # another limit is another job
    assert invoke(*limited, "--resume", "--limit-tokens", "41").code == 2


def test_a_document_without_tokens_fails_alone_with_limit_tokens(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "three.jsonl").write_text('{"text": "one two"}\n{"text": "drop"}\n{"text": "three"}\n')
    beginning = Tokenizer.beginning

    def without_tokens(self: Tokenizer, text: str, num_tokens: int) -> str:
        if text == "drop":
            raise DocumentError("the text gives no tokens")
        return beginning(self, text, num_tokens)

    monkeypatch.setattr(Tokenizer, "beginning", without_tokens)
    given = arguments(tmp_path / "three.jsonl", model, tmp_path / "out", "--limit-tokens", 4, "--store", "memory://")
    outcome = invoke(*given)
    assert outcome.code == 1
    assert [row["status"] for row in rows(tmp_path / "out", "documents")] == ["scored", "failed", "scored"]


def test_a_full_store_stops_the_job_and_a_larger_one_continues_it(model: Path, text: Path, tmp_path: Path) -> None:
    assert (
        invoke(*arguments(text, model, tmp_path / "free", "--retention", "window", "--durability", "power")).code == 0
    )
    out = tmp_path / "out"
    full = invoke(*arguments(text, model, out, "--store-quota-bytes", 10_000))
    assert full.code == 2
    assert "bytes of at most 10,000" in full.stderr
    assert invoke(*arguments(text, model, out, "--resume", "--store-quota-bytes", 10**9)).code == 0
    assert table_bytes(out) == table_bytes(tmp_path / "free")


def test_a_kept_memory_is_used_again(model: Path, text: Path, tmp_path: Path) -> None:
    store = tmp_path / "library.lance"
    keep = ["--keep-memory", "--store", store, "--namespace", "library"]
    for name in ("first", "second"):
        assert invoke(*arguments(text, model, tmp_path / name, *keep)).code == 0
    first, second = (summary_of(tmp_path / name) for name in ("first", "second"))
    num_segments = first["counts"]["segments"]
    assert (first["stages"]["put"]["segments"], second["stages"]["put"]["segments"]) == (num_segments, 0)
    assert table_bytes(tmp_path / "first") == table_bytes(tmp_path / "second")
    with MemoryStore.open(store) as opened:
        assert opened.documents() == [DocumentKey("library", "book")]
        assert opened.verify() == num_segments

    # another text of this name is refused; in another namespace it is accepted; a job that keeps nothing neither reads
    # nor leaves stored blocks
    text.write_text(prose(9, 200), "utf-8")
    refused = invoke(*arguments(text, model, tmp_path / "third", *keep))
    assert refused.code == 1
    assert "already holds another text" in refused.stdout
    assert "namespace" in refused.stdout
    assert invoke(*arguments(text, model, tmp_path / "fourth", *keep[:-2])).code == 0
    assert invoke(*arguments(text, model, tmp_path / "fifth", "--store", store)).code == 0
    with MemoryStore.open(store) as opened:
        assert opened.documents() == [DocumentKey("default", "book"), DocumentKey("library", "book")]

    other_model = arguments(text, model, tmp_path / "sixth", *keep, "--chunk-tokens", 8)
    outcome = invoke(*other_model)
    assert outcome.code == 2
    assert "chunk_tokens: 4 != 8" in outcome.stderr or "chunk_tokens: 8 != 4" in outcome.stderr


def test_a_memory_of_int8_is_smaller_and_nearly_the_same(model: Path, text: Path, tmp_path: Path) -> None:
    nats, stored = {}, {}
    for kv_dtype in ("float16", "int8"):
        out, store = tmp_path / kv_dtype, str(tmp_path / f"{kv_dtype}.lance")
        options = ("--keep-memory", "--store", store, "--kv-dtype", kv_dtype)
        assert invoke(*arguments(text, model, out, *options)).code == 0
        assert summary_of(out)["settings"]["kv_dtype"] == kv_dtype
        nats[kv_dtype] = summary_of(out)["nats"]["longmem"]
        with MemoryStore.open(store) as opened:
            stored[kv_dtype] = sum(entry.num_bytes for entry in opened.document("book").segments)
    assert stored["int8"] < 0.9 * stored["float16"]
    assert nats["int8"] != nats["float16"]
    assert nats["int8"] == pytest.approx(nats["float16"], rel=1e-2)
    mixed = invoke(*arguments(text, model, tmp_path / "mixed", "--keep-memory", "--store", store))
    assert mixed.code == 2
    assert "kv_dtype: 'int8' != 'float16'" in mixed.stderr


def test_every_format_gives_the_same_scores(model: Path, text: Path, tmp_path: Path) -> None:
    line = json.dumps({"text": text.read_text("utf-8"), "id": "book"}) + "\n"
    (tmp_path / "b.jsonl").write_text(line)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    segments = []
    for number, path in enumerate((text, tmp_path / "b.jsonl", tmp_path / "b.jsonl.gz", text.as_uri())):
        assert invoke(*arguments(path, model, tmp_path / str(number), "--store", "memory://")).code == 0
        segments.append((tmp_path / str(number) / "segments.parquet").read_bytes())
    assert len(set(segments)) == 1


# --- help, version, doctor --------------------------------------------------------------------------------------


def test_version_and_help() -> None:
    assert invoke("--version").stdout.startswith("longmem ")
    root: Any = typer.main.get_command(app)
    commands = [name for name, command in root.commands.items() if not hasattr(command, "commands")]
    assert {"perplexity", "doctor"} <= set(commands)
    overview = invoke("--help").stdout
    for command in commands:
        assert command in overview
        page = invoke(command, "--help")
        assert page.code == 0
        assert "Example:" in page.stdout
        assert f"longmem {command}" in page.stdout


def test_doctor_looks_at_this_machine() -> None:
    outcome = invoke("doctor")
    assert "torch" in outcome.stdout
    assert "Ray cluster" in outcome.stdout
    assert outcome.code == (0 if "Jobs can run here" in outcome.stdout else 2)


# --- bad input, found before any work: exit code 2 --------------------------------------------------------------


def refused(*args: str) -> str:
    outcome = invoke(*args)
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
    return outcome.stderr


def test_a_missing_file_ends_the_process_with_code_2(model: Path, tmp_path: Path) -> None:
    outcome = run_process(*arguments(tmp_path / "nothing.txt", model, tmp_path / "out"))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: input not found:")
    assert "nothing.txt" in outcome.stderr
    assert not (tmp_path / "out").exists(), "bad input is found before anything is made"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--segment-tokens", 30], "segment_tokens must be a multiple of chunk_tokens=4"),
        (["--chunk-tokens", 5], "must be a multiple of chunk_tokens=5"),
        (["--segment-tokens", 4096], "segment_tokens must be at most 128"),
        (["--top-k", 0], "--top-k must be at least 1, got 0"),
        (["--memory-tokens", -4], "--memory-tokens must be at least 0, got -4"),
        (["--no-memory", "--memory-tokens", 8], "contradict each other"),
        (["--limit-documents", 0], "--limit-documents must be at least 1"),
        (["--namespace", "x"], "add --keep-memory"),
        (["--keep-memory", "--store", "memory://"], "needs a store on disk"),
        (["--retention", "forever", "--store", "memory://"], "needs a store on disk"),
        (["--keep-memory", "--retention", "window"], "contradict each other"),
        (["--store-quota-bytes", 0], "--store-quota-bytes must be at least 1"),
        (["--threads", 0], "--threads must be at least 1"),
        (["--dtype", "int3"], "int3"),
        (["--zork"], "--zork"),
        (["--max-in-flight-segments", 0], "--max-in-flight-segments must be at least 1, got 0"),
        (["--max-in-flight-bytes", -1], "max-in-flight-bytes"),
    ],
)
def test_settings_that_cannot_work(model: Path, text: Path, tmp_path: Path, options: list[object], words: str) -> None:
    assert words in refused(*arguments(text, model, tmp_path / "out", *options))
    assert not (tmp_path / "out" / "job.json").exists()


def test_resume_needs_a_folder(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--resume needs --out" in refused(*arguments(text, model, None, "--resume"))
    assert not (tmp_path / "longmem-runs").exists()


@pytest.mark.parametrize(
    "options", [["--encoders", "0"], ["--readers", "0"], ["--stores", "0"], ["--encoders", "0", "--readers", "0"]]
)
def test_cluster_without_workers_is_refused(model: Path, text: Path, tmp_path: Path, options: list[str]) -> None:
    """Refuse before Ray is called, and before the cores are divided by the number of workers."""
    args = ["perplexity", str(text), "--model", str(model), "--out", str(tmp_path / "out"), "--address", "local"]
    assert "must be at least 1" in refused(*args, *options)


def damaged(models: Path, base: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / base, tmp_path / "damaged"))


def edit(path: Path, **values: object) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign_tokenizer(path: Path) -> None:
    """Save a tokenizer with a token id beyond the backbone's embedding."""
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zork"] = 100_000
    path.write_text(json.dumps(content))


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "unknown family": ("backbone", lambda m: edit(m / "config.json", model_type="t5"), "family 't5' is not supported"),
    "unheard-of family": ("backbone", lambda m: edit(m / "config.json", model_type="zork"), "family 'zork' is not"),
    "weights cut off": ("backbone", lambda m: cut(m / "model.safetensors"), "cannot load the weights"),
    "weights missing": ("backbone", lambda m: (m / "model.safetensors").unlink(), "no weights in"),
    "no tokenizer": ("backbone", lambda m: (m / "tokenizer.json").unlink(), "no tokenizer in"),
    "broken tokenizer": ("backbone", lambda m: (m / "tokenizer.json").write_text("{"), "no usable tokenizer"),
    "wrong tokenizer": ("trained", lambda m: foreign_tokenizer(m / "backbone/tokenizer.json"), "wrong tokenizer"),
    "flipped bit": ("trained", lambda m: flip(m / "backbone/model.safetensors"), "is not what was saved"),
    "flipped bit of the SideNet": ("trained", lambda m: flip(m / "sidenet.safetensors"), "is not what was saved"),
    "SideNet cut off": ("trained", lambda m: cut(m / "sidenet.safetensors"), "is damaged"),
    "SideNet missing": ("trained", lambda m: (m / "sidenet.safetensors").unlink(), "missing"),
    "no config": ("trained", lambda m: (m / "config.json").unlink(), "config"),
    "broken config": ("trained", lambda m: (m / "config.json").write_text("{"), "is not valid JSON"),
    "config without settings": ("trained", lambda m: edit(m / "config.json", longmem=None), "config.json"),
    "config without digest": ("trained", lambda m: edit(m / "config.json", backbone_digest=None), "config.json"),
    "config of an unknown setting": (
        "trained",
        lambda m: edit(m / "config.json", longmem={"a": 1}),
        "unknown settings",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_model_that_cannot_be_used(models: Path, text: Path, tmp_path: Path, name: str) -> None:
    base, damage, words = DAMAGES[name]
    model = damaged(models, base, tmp_path)
    damage(model)
    message = refused(*arguments(text, model, tmp_path / "out", "--segment-tokens", 32, "--store", "memory://"))
    assert words in message
    # the folder stays free for the corrected command, which the test below runs
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {"job.lock"}


def test_a_refused_job_can_be_corrected(models: Path, text: Path, tmp_path: Path) -> None:
    model = damaged(models, "trained", tmp_path)
    flip(model / "sidenet.safetensors")
    assert "is not what was saved" in refused(*arguments(text, model, tmp_path / "out", "--store", "memory://"))
    assert invoke(*arguments(text, models / "untrained", tmp_path / "out", "--store", "memory://")).code == 0


def test_a_model_that_is_not_there(text: Path, tmp_path: Path) -> None:
    assert "model folder not found" in refused(*arguments(text, tmp_path / "nothing", tmp_path / "out"))


def test_places_that_cannot_be_used(finished: tuple[Outcome, Path], model: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a file")
    message = refused(*arguments(text, model, tmp_path / "a", "--store", file))
    assert str(file) in message
    assert "cannot use output folder" in refused(*arguments(text, model, file))
    assert file.read_text() == "a file"
    before = {path.name: path.read_bytes() for path in finished[1].iterdir()}
    assert "holds another job" in refused(*arguments(text, model, finished[1]))
    assert {path.name: path.read_bytes() for path in finished[1].iterdir()} == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    for options in ([], ["--resume"]):
        assert "chapter.tex" in refused(*arguments(text, model, tmp_path / "thesis", *options))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_place(model: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir(mode=0o500)
    try:
        assert "Permission denied" in refused(*arguments(text, model, place / "out"))
    finally:
        place.chmod(0o700)


# --- bad documents: the others are scored, exit code 1 ----------------------------------------------------------


def test_bad_documents_are_named_and_the_others_are_scored(model: Path, text: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.txt").write_text("")
    (bad / "binary.txt").write_bytes(b"\x7fELF\0\0")
    (bad / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    (bad / "twin.jsonl").write_text('{"text": "a second one of that name", "id": "book"}')
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "first line"}\n{"text": torn\n{"text": "third \\u001b[31mline", "id": "third"}\n')
    out = tmp_path / "out"
    outcome = invoke(*arguments([text, bad, lines], model, out, "--store", "memory://"))
    assert outcome.code == 1

    documents = {row["document"]: row for row in rows(out, "documents")}
    assert [name for name, row in documents.items() if row["status"] == "scored"] == ["book", "lines:1", "third"]
    expected = {
        "binary": "binary file (a NUL byte at 4)",
        "empty": "is empty: expected some text",
        "latin1": "not valid UTF-8: invalid continuation byte at byte 2",
        "lines:2": f"{lines} line 2 is not valid JSON",
    }
    for name, words in expected.items():
        assert documents[name]["status"] == "failed"
        assert words in documents[name]["error"]
        for shown in (outcome.stderr, outcome.stdout):
            assert words in shown
    [twin] = set(documents) - set(expected) - {"book", "lines:1", "third"}
    assert "already used by" in documents[twin]["error"]

    summary = summary_of(out)
    assert (summary["counts"]["documents"], summary["counts"]["failed_documents"]) == (3, 5)
    assert {each["document"] for each in summary["failures"]} == {*expected, twin}
    # a bad document does not change the numbers of the others
    assert {row["document"] for row in rows(out, "segments")} == {"book", "lines:1", "third"}
    assert invoke(*arguments(text, model, tmp_path / "alone", "--store", "memory://")).code == 0
    mine = [row for row in rows(out, "segments") if row["document"] == "book"]
    assert mine == rows(tmp_path / "alone", "segments")


def test_a_job_of_bad_documents_only_has_no_figures(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    outcome = invoke(*arguments(tmp_path / "empty.txt", model, tmp_path / "out"))
    assert outcome.code == 1
    assert "is empty" in outcome.stdout
    summary = summary_of(tmp_path / "out")
    assert (summary["perplexity"], summary["counts"]["tokens"]) == (None, 0)


def test_ids_cannot_write_to_the_terminal_or_pass_for_others(model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"text": "", "id": "evil\x1b]0;owned\x07 [red]"}) + "\n")
    outcome = invoke(*arguments(lines, model, tmp_path / "out", "--store", "memory://"))
    assert outcome.code == 1
    assert "[red]" in outcome.stdout, "brackets are text, not markup"
    assert "\x1b" not in outcome.stdout + outcome.stderr
    assert "\x07" not in outcome.stdout + outcome.stderr


def test_a_failure_is_never_hidden_by_another_documents_id(model: Path, tmp_path: Path) -> None:
    """Check failed ids: the second "a" fails, and a later document must not take over the id of its record."""
    lines = tmp_path / "lines.jsonl"
    ids = ("a", "a", "a#1", "a#2", "a#3")
    lines.write_text("".join(json.dumps({"text": f"text {n}", "id": name}) + "\n" for n, name in enumerate(ids)))
    outcome = invoke(*arguments(lines, model, tmp_path / "out", "--store", "memory://"))
    counts = summary_of(tmp_path / "out")["counts"]
    assert counts["documents"] + counts["failed_documents"] == len(ids), "every document is accounted for"
    assert counts["failed_documents"] >= 1
    assert outcome.code == 1


def test_text_that_no_file_can_hold_fails_alone(model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "one", "id": "\\ud800"}\n{"text": "\\ud800"}\n{"text": "three", "id": "good"}\n')
    outcome = invoke(*arguments(lines, model, tmp_path / "out"))
    assert outcome.code == 1
    assert [row["document"] for row in rows(tmp_path / "out", "documents") if row["status"] == "scored"] == ["good"]


def test_a_backbone_that_overflows_gives_an_error_and_no_number(models: Path, text: Path, tmp_path: Path) -> None:
    model = damaged(models, "backbone", tmp_path)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name and "down_proj" in name)
    # finite, so that it loads; products of such weights overflow
    weights[name][:] = 3e38
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    outcome = invoke(*arguments(text, model, out, "--segment-tokens", 32, "--memory-tokens", 96))
    assert outcome.code == 1
    assert "expected finite numbers" in outcome.stderr
    assert "NaN or infinite" in outcome.stderr
    assert "check the backbone's weights" in outcome.stderr
    assert summary_of(out)["perplexity"] is None
    assert rows(out, "segments") == []


# --- resume -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for number in range(2):
        (folder / f"{number}.txt").write_text(prose(20 + number, 1500), "utf-8")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(model: Path, long_books: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert invoke(*arguments(long_books, model, out, "--tokens")).code == 0
    return table_bytes(out)


def interrupted(args: list[str], out: Path, sent: signal.Signals, num_lines: int = 6) -> Outcome:
    """Start a job and send it a signal when its journal has some lines.

    The job runs in short slices, so that it cannot finish before a delayed test has checked.
    """
    with start(*args) as process:
        try:
            deadline = time.monotonic() + 60
            journal = out / "journal.jsonl"
            while not journal.exists() or journal.read_bytes().count(b"\n") < num_lines:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "no progress in a minute"
                process.send_signal(signal.SIGCONT)
                time.sleep(0.02)
                process.send_signal(signal.SIGSTOP)
            process.send_signal(sent)
            process.send_signal(signal.SIGCONT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert not (out / "summary.json").exists(), f"it was meant to be stopped half way: {stderr}"
    return Outcome(process.returncode, stdout, stderr)


def test_a_killed_job_goes_on_where_it_was(
    model: Path, long_books: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = arguments(long_books, model, out, "--tokens")
    assert interrupted(args, out, signal.SIGKILL).code == -signal.SIGKILL
    lines = (out / "journal.jsonl").read_bytes()
    # the state that a kill in the middle of a write would leave
    (out / "journal.jsonl").write_bytes(lines[:-7])

    assert "holds another job" in refused(*args), "it is never begun again by accident"
    message = refused(*args, "--resume", "--no-memory")
    assert "settings" in message or "memory" in message

    outcome = invoke(*args, "--resume")
    assert outcome.code == 0, outcome.stderr
    assert table_bytes(out) == uninterrupted
    assert (out / "journal.jsonl").read_bytes().startswith(lines[: lines[:-1].rindex(b"\n") + 1])
    summary = summary_of(out)
    assert summary["resumed"]
    slices = json.loads((out / "slices.json").read_text())["slices"]
    scored = [each["stages"]["score"]["segments"] for each in slices]
    assert scored[1] < summary["counts"]["segments"], "only the rest was scored"
    assert summary["stages"]["score"]["segments"] == sum(scored)
    assert not (out / "memory.lance").exists()


def test_an_interrupted_job_says_how_to_go_on_and_does(
    model: Path, long_books: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """Interrupt with Ctrl-C, then close the terminal of the resumed job, then finish; seconds of all three count."""
    out = tmp_path / "out"
    args = arguments(long_books, model, out, "--tokens")
    for sent, num_lines, more in ((signal.SIGINT, 5, []), (signal.SIGHUP, 12, ["--resume"])):
        outcome = interrupted([*args, *more], out, sent, num_lines)
        assert outcome.code == 130
        assert "Traceback" not in outcome.stderr
        assert outcome.stderr.count("interrupted.") == 1
        assert "longmem resume" in outcome.stderr
        assert str(out) in outcome.stderr.replace("\n", "")
    assert invoke(*args, "--resume").code == 0
    assert table_bytes(out) == uninterrupted
    slices = json.loads((out / "slices.json").read_text())["slices"]
    summary = summary_of(out)
    assert len(slices) == 3
    assert all(each["wall_s"] > 0 for each in slices)
    assert summary["wall_s"] == pytest.approx(sum(each["wall_s"] for each in slices))
    for stage, found in summary["stages"].items():
        for name, value in found.items():
            assert value == pytest.approx(sum(each["stages"][stage][name] for each in slices)), (stage, name)
    assert summary["stages"]["score"]["segments"] == summary["counts"]["segments"], "each was scored once"


INTERRUPTED_AT_A_RECORD = """
import signal, sys
from pipelines.cli import main
from pipelines.job.journal import AbstractJournal

name, wanted, left = sys.argv.pop(1), AbstractJournal.add, [3]
signal.signal(signal.SIGINT, signal.default_int_handler)

def add(self, record):
    wanted(self, record)
    left[0] -= type(record).__name__ == name
    if left[0] == 0:
        signal.raise_signal(signal.SIGINT)

AbstractJournal.add = add
main()
"""


@pytest.mark.parametrize(("record", "counted"), [("SegmentRecord", "segments"), ("WindowRecord", "windows")])
def test_what_is_in_the_journal_of_an_interrupted_job_is_counted(
    model: Path, text: Path, tmp_path: Path, record: str, counted: str
) -> None:
    """Interrupt between a record and the totals that count it."""
    out = tmp_path / "out"
    args = arguments(text, model, out, "--window", 64, "--stride", 32)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_A_RECORD, record, *args],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    assert not (out / "summary.json").exists()
    assert invoke(*args, "--resume").code == 0
    summary = summary_of(out)
    slices = json.loads((out / "slices.json").read_text())["slices"]
    assert len(slices) == 2
    if counted == "segments":
        assert summary["stages"]["score"]["segments"] == summary["counts"]["segments"]
    else:
        assert sum(each["window"]["windows"] for each in slices if each.get("window")) == summary["window"]["windows"]


def test_resume_of_a_finished_job_changes_nothing(
    copied: Path, model: Path, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(copied)
    # this model at another path is loaded for comparison
    moved = shutil.copytree(model, tmp_path / "moved")
    outcome = invoke(*arguments(books, moved, copied, "--tokens", "--resume"))
    assert (outcome.code, outcome.stdout.count("\n")) == (0, 1)
    assert outcome.stdout == f"{copied}: the job has finished before; nothing was changed\n"
    assert snapshot(copied) == before
    # at its original path it is not loaded
    monkeypatch.setattr("longmem.model.source.ModelSource.open", lambda _: pytest.fail("the model was loaded"))
    again = invoke(*arguments(books, model, copied, "--tokens", "--resume"))
    assert (again.code, again.stdout) == (outcome.code, outcome.stdout)
    # the last line has the seconds that it took
    assert again.stderr.splitlines()[:-1] == outcome.stderr.splitlines()[:-1]
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "keep_tokens: true != false"),
        (["--tokens", "--top-k", 8], "settings"),
        (["--tokens", "--limit-documents", 2], "limit_documents: null != 2"),
        (["--tokens", "--search", "faiss"], "search"),
    ],
)
def test_another_job_is_not_resumed(copied: Path, model: Path, books: Path, options: list[object], words: str) -> None:
    before = table_bytes(copied)
    message = refused(*arguments(books, model, copied, "--resume", *options))
    assert "holds another job" in message
    assert words in message
    assert table_bytes(copied) == before
    assert not (copied / "memory.lance").exists(), "a refused command leaves nothing behind"


def half_done(model: Path, text: Path, out: Path) -> list[str]:
    """Write the state of a job killed after some segments of its only document; return its arguments."""
    args = arguments(text, model, out, "--tokens", "--store", "memory://")
    assert invoke(*args).code == 0
    (out / "summary.json").unlink()
    lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (out / "journal.jsonl").write_bytes(b"".join(lines[:4]))
    return args


def test_a_text_that_changed_is_never_mixed_with_the_old_one(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    original = text.read_bytes()
    args = half_done(model, text, out)
    expected = table_bytes(out)

    text.write_text(prose(7, 200), "utf-8")
    for attempt in range(2):
        outcome = invoke(*args, "--resume")
        assert outcome.code == 1, f"attempt {attempt} took another text for the one that the job began with"
        assert "has changed since the job began" in outcome.stdout
        assert rows(out, "segments") == [], "a job whose document failed is not finished"

    text.write_bytes(original)
    assert invoke(*args, "--resume").code == 0
    assert table_bytes(out) == expected


def test_a_changed_text_takes_no_finished_result_away_for_good(copied: Path, model: Path, books: Path) -> None:
    """Refuse the command after a finished job; with the old text there is no work left."""
    before = snapshot(copied)
    args = arguments(books, model, copied, "--tokens", "--resume")
    path = books / "f.txt"
    original = path.read_bytes()
    try:
        path.write_text("something else")
        for _ in range(2):
            assert "f has changed since the job began" in refused(*args)
    finally:
        path.write_bytes(original)
    assert invoke(*args).code == 0
    assert snapshot(copied) == before


def test_a_failed_document_is_tried_again(model: Path, text: Path, tmp_path: Path) -> None:
    out, second = tmp_path / "out", tmp_path / "second.txt"
    second.write_text("")
    args = arguments([text, second], model, out, "--tokens", "--store", "memory://")
    assert invoke(*args).code == 1
    second.write_text("now it has words")
    assert invoke(*args, "--resume").code == 0
    whole = tmp_path / "whole"
    assert invoke(*arguments([text, second], model, whole, "--tokens", "--store", "memory://")).code == 0
    assert table_bytes(out) == table_bytes(whole)


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Yield a function that mounts a file system with the given free bytes; unlink `ballast` to free space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")

    def leave(free_bytes: int) -> Path:
        status = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - free_bytes))
        return disk

    yield leave
    subprocess.run(["umount", "-l", str(disk)], check=True)


KIB = 1024


@pytest.mark.parametrize(
    ("free_bytes", "options"),
    [
        pytest.param(200 * KIB, [], id="memory store"),
        pytest.param(0, ["--store", "memory://"], id="job.json"),
        pytest.param(8 * KIB, ["--store", "memory://"], id="journal"),
        pytest.param(48 * KIB, ["--store", "memory://"], id="results"),
    ],
)
def test_a_full_disk_loses_nothing(
    small_disk: Callable[[int], Path],
    model: Path,
    long_books: Path,
    uninterrupted: dict[str, bytes],
    free_bytes: int,
    options: list[object],
) -> None:
    disk = small_disk(free_bytes)
    args = arguments(long_books, model, disk / "out", "--tokens", *options)
    message = refused(*args)
    assert "disk is full" in message or "No space left on device" in message
    (disk / "ballast").unlink()
    resumed = invoke(*args, "--resume")
    assert resumed.code == 0, resumed.stderr
    assert table_bytes(disk / "out") == uninterrupted
    left = [path.name for path in (disk / "out").iterdir() if path.name.startswith(".")]
    assert left == [], "nothing half written stays"
