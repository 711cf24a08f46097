# SPDX-License-Identifier: Apache-2.0
"""`longmem memory …` from a user's point of view."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from longmem.store.config import MemoryStore
from longmem.types import DocumentKey
from pipelines.cli import app
from tests.blocks import IDENTITY, KEY, make_block

FOREIGN = DocumentKey("[bold]n[/]", "\x1b[31mred\x07[link=x]")
SIZE = make_block().num_bytes


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "memory.lance"
    with MemoryStore.open(folder) as opened:
        for index in (1, 2, 5):
            opened.put(make_block(segment=index))
        opened.put(make_block(FOREIGN, num_tokens=3))
    return folder


def invoke(*args: object, answer: str | None = None) -> Result:
    result = CliRunner(env={"COLUMNS": "140"}).invoke(
        app, ["memory", *map(str, args)], input=answer, prog_name="longmem"
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_ls(store: Path) -> None:
    result = invoke("ls", "--store", store)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["namespace", "document", "segments", "tokens", "bytes"]
    assert ["default", "moby-dick", "3", "48", f"{3 * SIZE:,}"] in [line.split() for line in lines]
    # markup and control characters are shown escaped and have no effect on the terminal
    assert "[bold]n[/]" in result.stdout
    assert "\ufffd[31mred\ufffd[link=x]" in result.stdout
    assert "\x1b" not in result.stdout
    found = json.loads(invoke("ls", "--store", store, "--json").stdout)
    assert found["documents"][1] == {
        "namespace": "default",
        "document": "moby-dick",
        "segments": 3,
        "tokens": 48,
        "bytes": 3 * SIZE,
    }
    assert found["documents"][0]["document"] == FOREIGN.document
    assert len(json.loads(invoke("ls", "--store", store, "--json", "--namespace", "default").stdout)["documents"]) == 1


def test_show(store: Path) -> None:
    result = invoke("show", KEY.document, "--store", store)
    assert result.exit_code == 0
    assert "[0, 1), [3, 5)" in result.stdout
    found = json.loads(invoke("show", KEY.document, "--store", store, "--json").stdout)
    assert found["gaps"] == [[0, 1], [3, 5]]
    assert found["fingerprint"] == vars(IDENTITY)
    assert invoke("show", FOREIGN.document, "--namespace", FOREIGN.namespace, "--store", store).exit_code == 0
    unknown = invoke("show", "nobody", "--store", store)
    assert unknown.exit_code == 2
    assert "holds no document 'nobody'" in unknown.stderr


def test_fork_and_rm(store: Path) -> None:
    assert invoke("fork", KEY.document, "copy", "--to-namespace", "other", "--store", store).exit_code == 0
    assert invoke("fork", KEY.document, "copy", "--to-namespace", "other", "--store", store).exit_code == 2
    assert invoke("rm", KEY.document, "--store", store, answer="n\n").exit_code == 1
    with MemoryStore.open(store) as opened:
        assert len(opened.segments(KEY)) == 3
    assert invoke("rm", KEY.document, "--store", store, answer="y\n").exit_code == 0
    assert invoke("rm", KEY.document, "--store", store, "--yes").exit_code == 2
    assert invoke("rm", "copy", "--namespace", "other", "--store", store, "--yes").exit_code == 0
    with MemoryStore.open(store) as opened:
        assert opened.documents() == [FOREIGN]


def test_verify_and_repair(store: Path) -> None:
    result = invoke("verify", "--store", store)
    assert result.exit_code == 0
    assert "4 blocks read" in result.stdout
    newest = sorted((store / "catalogue.lance" / "_versions").glob("*.manifest"))[0]
    newest.write_bytes(bytes(newest.stat().st_size))
    for command in (["ls"], ["verify"], ["show", KEY.document]):
        broken = invoke(*command, "--store", store)
        assert broken.exit_code == 2
        assert "verify --repair" in broken.stderr
    repaired = invoke("verify", "--repair", "--store", store, "--json")
    assert repaired.exit_code == 1
    report = json.loads(repaired.stdout)
    assert report["blocks"] == 3
    assert report["actions"]
    again = invoke("verify", "--repair", "--store", store)
    assert again.exit_code == 0
    assert "3 blocks read" in again.stdout


def test_compact(store: Path) -> None:
    left = next(store.glob("p-*.lance")) / "data" / ".tmp1"
    left.write_bytes(bytes(77))
    assert json.loads(invoke("compact", "--store", store, "--json").stdout) == {"files": 0, "tables": 0, "bytes": 0}
    result = invoke("compact", "--orphan-minutes", 0, "--store", store)
    assert result.exit_code == 0
    assert "1 temporary file " in result.stdout
    assert "77 bytes" in result.stdout
    assert invoke("verify", "--store", store).exit_code == 0


@pytest.mark.parametrize("command", ["ls", "verify", "compact"])
@pytest.mark.parametrize("name", ["absent", "memory://"])
def test_a_mistyped_store_is_not_created(tmp_path: Path, command: str, name: str) -> None:
    uri = name if "://" in name else str(tmp_path / name)
    result = invoke(command, "--store", uri)
    assert result.exit_code == 2
    assert "--store" in result.stderr
    assert not list(tmp_path.iterdir())


def test_fork_and_rm_print_json(store: Path) -> None:
    forked = invoke("fork", KEY.document, "copy", "--store", store, "--json")
    assert json.loads(forked.stdout) == {
        "source": {"namespace": "default", "document": KEY.document},
        "target": {"namespace": "default", "document": "copy"},
        "blocks": 3,
    }
    removed = invoke("rm", "copy", "--store", store, "--json", answer="y\n")
    # the runner echoes the answer before the result
    assert json.loads(removed.stdout.splitlines()[-1]) == {
        "documents": [{"namespace": "default", "document": "copy"}],
        "blocks": 3,
    }
    assert "Forget 3 blocks" in removed.stderr, "the question is no part of the result"
