# SPDX-License-Identifier: Apache-2.0
"""`longmem generate` on a small model: the text of `LongMem.generate`, from every kind of memory and prompt."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longmem.model.longmem import LongMem
from longmem.scoring.generate import Sampling
from longmem.store.config import MemoryStore
from longmem.testing import small_longmem
from pipelines.cli import app
from tests.texts import prose

PROMPT = "the whale swam"
BOOK = prose(3, 60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_longmem(folder, memory_tokens=64).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "memory.lance"
    with MemoryStore.open(path) as opened:
        LongMem.from_pretrained(model).score(BOOK, opened.document("book"))
    return path


def run(model: Path, *options: object, typed: str | None = None) -> tuple[int, str, str]:
    given = ["generate", "--model", model, "--threads", 1, "--max-new-tokens", 12, *options]
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(each) for each in given], typed, prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def shown(text: str) -> str:
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


@pytest.fixture(scope="module")
def expected(model: Path, store: Path) -> dict[str, str]:
    """Texts that follow the prompt, without and with the memory of the book."""
    opened = LongMem.from_pretrained(model)
    with MemoryStore.open(store) as held:
        memory = held.document("book").as_read_only()
        return {
            "alone": opened.generate(PROMPT, max_new_tokens=12),
            "book": opened.generate(PROMPT, memory, max_new_tokens=12),
            "sampled": opened.generate(
                PROMPT, memory, max_new_tokens=12, sampling=Sampling(temperature=0.9, top_p=0.8, seed=4)
            ),
        }


def test_the_text_is_that_of_the_model(model: Path, store: Path, expected: dict[str, str], tmp_path: Path) -> None:
    assert len(set(expected.values())) == 3, "the memory changes nothing"
    held = ("--store", store, "--document", "book")
    assert run(model, "--prompt", PROMPT)[:2] == (0, shown(expected["alone"]) + "\n")
    assert run(model, "--prompt", PROMPT, *held)[:2] == (0, shown(expected["book"]) + "\n")
    sampling = ("--temperature", 0.9, "--top-p", 0.8, "--seed", 4)
    assert run(model, "--prompt", PROMPT, *held, *sampling)[:2] == (0, shown(expected["sampled"]) + "\n")
    # only the segments that the prompt may read are encoded, and they give the same text as the whole store
    (tmp_path / "book.txt").write_text(BOOK, "utf-8")
    assert run(model, "--prompt", PROMPT, "--memory-file", tmp_path / "book.txt")[:2] == (
        0,
        shown(expected["book"]) + "\n",
    )


def test_the_prompt_comes_from_a_file_or_a_pipe(model: Path, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n", "utf-8")
    assert run(model, "--prompt-file", tmp_path / "prompt.txt")[1] == shown(expected["alone"]) + "\n"
    assert run(model, typed=PROMPT + "\n")[1] == shown(expected["alone"]) + "\n"


def test_json_is_prompt_and_text(model: Path, store: Path, expected: dict[str, str]) -> None:
    code, stdout, _ = run(model, "--prompt", PROMPT, "--store", store, "--document", "book", "--json")
    values = json.loads(stdout)
    assert (code, values["prompt"], values["text"]) == (0, PROMPT, expected["book"])
    assert values["memory_tokens"] == len(BOOK.encode()) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "a", "--prompt-file", "b"), "--prompt and --prompt-file contradict"),
        (("--prompt", "a", "--store", "s"), "--store and --document name one memory together"),
        (("--prompt", "a", "--store", "s", "--document", "d", "--memory-file", "f"), "--store and --memory-file"),
        (("--prompt", "a", "--document", "d"), "`longmem memory ls --store STORE` lists the documents"),
        (("--prompt", ""), "--prompt must not be empty: give a value, or leave it out (default: standard input)"),
        (("--prompt", "a", "--namespace", "n"), "--namespace needs --store"),
        (("--prompt", "a", "--top-p", "0.5", "--seed", "1"), "--seed and --top-p need --temperature above 0"),
        (("--prompt-file", "nowhere.txt"), "cannot read --prompt-file nowhere.txt"),
        ((), "the prompt from standard input is empty"),
        (("--prompt", "a", "--memory-file", "nowhere.txt"), "input not found"),
        (("--prompt", "a", "--store", "nowhere", "--document", "d"), "there is no such folder"),
    ],
)
def test_what_contradicts_itself_or_is_absent_is_refused(model: Path, options: tuple[str, ...], message: str) -> None:
    code, stdout, stderr = run(model, *options)
    assert (code, stdout) == (2, ""), stderr
    assert message in stderr
    assert stderr.count("\n") == 1


def test_an_unknown_document_and_another_model_are_refused(model: Path, store: Path, tmp_path: Path) -> None:
    code, _, stderr = run(model, "--prompt", "a", "--store", store, "--document", "moby")
    assert (code, "holds no document 'moby' in namespace 'default'" in stderr) == (2, True)
    code, _, stderr = run(model, "--prompt", "a", "--store", store, "--document", "book", "--segment-tokens", 16)
    assert (code, "segment_tokens" in stderr) == (2, True)
    assert f"its documents are listed by: longmem memory ls --store {store}" in run(
        model, "--prompt", "a", "--store", store, "--document", "moby"
    )[2].replace("\n", "")
    (tmp_path / "empty.txt").write_text("")
    code, _, stderr = run(model, "--prompt", "a", "--memory-file", tmp_path / "empty.txt")
    assert (code, stderr) == (2, f"error: {tmp_path / 'empty.txt'} is empty: expected some text\n")
    (tmp_path / "two.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    code, _, stderr = run(model, "--prompt", "a", "--memory-file", tmp_path / "two.jsonl")
    assert (code, "holds 2 documents; expected one" in stderr) == (2, True)
