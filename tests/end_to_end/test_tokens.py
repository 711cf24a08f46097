# SPDX-License-Identifier: Apache-2.0
"""Clusters with and without Ray's token authentication, joined by address with the user's token, or an explained
error."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longmem.testing import small_longmem
from tests.ray_heads import ROOT, Head, environment, started_heads

pytestmark = [pytest.mark.thorough, pytest.mark.ray, pytest.mark.timeout(300)]

TOKEN = "a-token-of-this-test-0123456789"
LIMIT_S = 120.0

JOIN = """
import json, os, sys, time
import ray
from actors.cluster import connect
from longmem.errors import ClusterError

@ray.remote(num_cpus=0)
class Echo:
    def say(self, text):
        return text

def case(name, address, token):
    os.environ.pop("RAY_AUTH_TOKEN", None)
    if token is not None:
        os.environ["RAY_AUTH_TOKEN"] = token
    begun, told = time.monotonic(), []
    try:
        connection = connect(address, num_cpus=1, object_store_bytes=None, tell=told.append)
    except ClusterError as error:
        said = str(error)
    else:
        echo = Echo.remote()
        said = ray.get(echo.say.remote("an actor answers"), timeout=60)
        del echo
        connection.close()
    print(json.dumps({"case": name, "said": said, "told": told, "s": time.monotonic() - begun}), flush=True)

for each in json.loads(sys.argv[1]):
    case(*each)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home folder of the user who started the cluster: `ray start` finds its token and enables tokens."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN, "utf-8")
    return home


DIES_STARTING = """
import os, sys

# the child that Ray starts for one client of ray://, before it runs anything of Ray
if "--mode=specific-server" in sys.orig_argv and os.path.exists({flag!r}):
    os.remove({flag!r})
    os._exit(1)
"""


@pytest.fixture(scope="module")
def dies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file whose existence ends the next client process of the first head while it starts."""
    return tmp_path_factory.mktemp("faults") / "dies"


@pytest.fixture(scope="module")
def heads(home: Path, dies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Head]]:
    """Start one head that requires the token, and one that was started without tokens."""
    stranger = tmp_path_factory.mktemp("stranger")
    (dies.parent / "sitecustomize.py").write_text(DIES_STARTING.format(flag=str(dies)), "utf-8")
    locked = environment(HOME=str(home), PYTHONPATH=f"{dies.parent}:{ROOT}")
    with started_heads(locked, environment(HOME=str(stranger))) as heads:
        yield heads


def records_of(script: str, argument: object, **variables: str) -> tuple[list[dict[str, Any]], str]:
    """Run a script in a process of its own; return the JSON objects that it printed, and its stderr."""
    process = subprocess.run(
        [sys.executable, "-c", script, json.dumps(argument)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")], process.stderr


def joined(home: Path, cases: list[tuple[str, str, str | None]], **more: str) -> dict[str, dict[str, Any]]:
    """Join each case (name, address, token in the environment) in one process and return the outcomes."""
    records, stderr = records_of(JOIN, cases, HOME=str(home), **more)
    assert "gcs_client.cc" not in stderr, "Ray was left to find out that it is refused"
    return {record["case"]: record for record in records}


def test_join_by_address_token_on_cluster_and_none_on_another_is_matched(heads: list[Head], home: Path) -> None:
    """Join by `host:port` and `ray://` in one process: the token mode follows the cluster."""
    locked, opened = heads
    found = joined(
        home,
        [
            ("open", f"127.0.0.1:{opened.gcs}", None),
            ("address", f"127.0.0.1:{locked.gcs}", None),
            ("client", f"ray://127.0.0.1:{locked.client}", None),
            ("open again", f"127.0.0.1:{opened.gcs}", None),
            ("wrong", f"127.0.0.1:{locked.gcs}", "another"),
            ("client port", f"127.0.0.1:{locked.client}", None),
            ("dashboard", f"127.0.0.1:{locked.dashboard}", None),
            ("client wrong", f"ray://127.0.0.1:{locked.client}", "another"),
        ],
    )
    for name in ("open", "address", "client"):
        assert found[name]["said"] == "an actor answers", found[name]
        # ignore earlier attempts that lost the client process started by Ray
        told = found[name]["told"][-1]
        assert told.startswith("joined the Ray cluster at "), told
        assert told.endswith("; 2 of 2 CPUs are free"), told
    for name in ("wrong", "client wrong"):
        assert "refuses the token that is here" in found[name]["said"]
    assert "join it from another process" in found["open again"]["said"]
    assert "write ray://HOST:PORT" in found["client port"]["said"]
    assert "does not answer as a Ray head" in found["dashboard"]["said"]
    for name in ("wrong", "client wrong", "client port", "dashboard"):
        assert found[name]["s"] < 5, found[name]


def test_join_by_address_without_token_says_so_at_once(heads: list[Head], tmp_path: Path) -> None:
    locked, _ = heads
    addresses = {"address": f"127.0.0.1:{locked.gcs}", "client": f"ray://127.0.0.1:{locked.client}"}
    found = joined(tmp_path, [(name, address, None) for name, address in addresses.items()])
    for name, record in found.items():
        assert f"the Ray cluster at {addresses[name]} asks for a token and there is none here" in record["said"]
        assert record["s"] < 5, record


@pytest.mark.slow
def test_join_client_process_dies_starting_is_tried_again(heads: list[Head], home: Path, dies: Path) -> None:
    """Retry after the client process died. Slow, because Ray waits a minute for that process."""
    address = f"ray://127.0.0.1:{heads[0].client}"
    dies.touch()
    record = joined(home, [("client", address, None)])["client"]
    assert record["said"] == "an actor answers", record
    lost = f"the Ray cluster at {address} lost its process for this client; attempt"
    assert record["told"][:-1] == [f"{lost} 2 of 3"], record
    assert not dies.exists()


@pytest.mark.parametrize(
    ("mode", "which", "message"),
    [
        ("disabled", 0, "RAY_AUTH_MODE=disabled keeps this process from sending one"),
        ("token", 1, "has no token authentication and RAY_AUTH_MODE=token asks for it"),
    ],
)
def test_join_by_address_against_the_users_mode_is_refused(
    heads: list[Head], home: Path, mode: str, which: int, message: str
) -> None:
    found = joined(home, [("only", f"127.0.0.1:{heads[which].gcs}", None)], RAY_AUTH_MODE=mode)
    assert message in found["only"]["said"]


COMMANDS = """
import json, sys
from typer.testing import CliRunner
from pipelines.cli import app

for each in json.loads(sys.argv[1]):
    outcome = CliRunner().invoke(app, each)
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), repr(outcome.exception)
    print(json.dumps({"code": outcome.exit_code, "said": outcome.output}), flush=True)
"""


def said_of(head: Head, home: Path, commands: list[list[str]]) -> list[dict[str, Any]]:
    """Run commands in one process, each with the head's address; return exit codes and output."""
    address = ["--address", f"127.0.0.1:{head.gcs}"]
    records, _ = records_of(COMMANDS, [[*each, *address] for each in commands], HOME=str(home))
    for record in records:
        assert record["said"].startswith(f"joined the Ray cluster at 127.0.0.1:{head.gcs}; "), record
    return records


def test_commands_of_a_cluster_by_address_send_the_token(heads: list[Head], home: Path) -> None:
    status, services, down = said_of(heads[0], home, [["status"], ["service", "status"], ["service", "down"]])
    assert (status["code"], services["code"], down["code"]) == (0, 0, 2), (status, services, down)
    assert "No job runs on this cluster." in status["said"]
    assert "no service runs on this cluster" in services["said"]
    assert "error: " in down["said"]


@pytest.mark.slow
def test_service_by_address_sends_the_token(heads: list[Head], home: Path, tmp_path: Path) -> None:
    small_longmem(tmp_path).save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--store", str(tmp_path / "store"), "--threads", "1"]
    records = said_of(heads[0], home, [["service", "up", *options], ["service", "status"], ["service", "down"]])
    expected = ["service longmem is up: ", "store-0: alive", "service longmem is down; 4 actors have ended"]
    for record, text in zip(records, expected, strict=True):
        assert record["code"] == 0, record
        assert text in record["said"], record
