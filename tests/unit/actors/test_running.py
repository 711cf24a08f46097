# SPDX-License-Identifier: Apache-2.0
"""Record of the running task where its file cannot be written. Tests with real processes are in tests/fault."""

import sys
from pathlib import Path

import pytest

from actors.workers import running
from actors.workers.running import RunningTask, Ticket
from longmem.errors import ClusterError


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a file that is always full")
def test_a_full_disk_is_an_error_that_names_the_place_and_not_a_bug_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    task = RunningTask()
    monkeypatch.setattr(running, "_path", lambda *_: Path("/dev/full"))
    outcome = task.run(Ticket("0123456789abcdef", 1, 60.0), lambda: ran.append("on a full disk"))
    assert isinstance(outcome.error, ClusterError)
    assert "/dev/full" in str(outcome.error)
    assert "No space left on device" in str(outcome.error)
    assert (outcome.result, task.ticket, ran) == (None, None, [])
    # once there is room, the same process goes on
    monkeypatch.setattr(running, "_path", lambda *_: tmp_path / "record")
    assert task.run(Ticket("0123456789abcdef", 2, 60.0), lambda: ran.append("with room")).error is None
    assert ran == ["with room"]
    assert (tmp_path / "record").read_bytes()[0] == running.EMPTY


def test_a_process_whose_file_is_empty_ran_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "record").touch()
    monkeypatch.setattr(running, "_path", lambda *_: tmp_path / "record")
    assert running._read._function(1, 2.0) is None
