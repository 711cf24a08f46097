# SPDX-License-Identifier: Apache-2.0
"""Times at which the status file is written, and its final content."""

import json
from pathlib import Path
from typing import Any

import pytest

from longmem.errors import ClusterError, OutputError
from pipelines.job.folder import STATUS_FILE, JobFolder
from pipelines.job.reporter import STATUS_S, JobReporter


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def status(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / STATUS_FILE).read_text()))


def test_the_status_is_written_every_two_seconds(tmp_path: Path) -> None:
    clock = Clock()
    with (
        JobFolder(tmp_path, resume=False) as folder,
        JobReporter(folder, "1", "perplexity", on_cluster=False, clock=clock) as report,
    ):
        assert status(tmp_path)["state"] == "running"
        report.admitted("moby", 10, 1)
        report.levels({"encode": 1}, 0, 0)
        assert status(tmp_path)["admitted_documents"] == 0
        clock.time += STATUS_S
        report.levels({"encode": 1}, 0, 0)
        assert status(tmp_path)["admitted_documents"] == 1
    assert status(tmp_path)["state"] == "finished"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "interrupted"), (ClusterError("lost"), "failed"), (ValueError(), "failed")],
)
def test_the_last_status_says_how_the_job_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    with (
        JobFolder(tmp_path, resume=False) as folder,
        pytest.raises(type(error)),
        JobReporter(folder, "1", "perplexity", on_cluster=False),
    ):
        raise error
    assert status(tmp_path)["state"] == state
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["level"]) == (f"job_{state}", "warning" if state == "interrupted" else "error")
    assert last["message"]


def end_without_status(folder: JobFolder, error: Exception | None) -> None:
    """End a job that can no longer write its status."""
    with JobReporter(folder, "1", "perplexity", on_cluster=False):
        (folder.path / STATUS_FILE).unlink()
        (folder.path / STATUS_FILE).mkdir()
        if error is not None:
            raise error


def test_a_status_that_cannot_be_written_does_not_hide_why_the_job_ended(tmp_path: Path) -> None:
    with JobFolder(tmp_path, resume=False) as folder:
        with pytest.raises(ClusterError) as caught:
            end_without_status(folder, ClusterError("lost"))
        assert STATUS_FILE in caught.value.__notes__[0]
        (tmp_path / STATUS_FILE).rmdir()
        with pytest.raises(OutputError, match=STATUS_FILE):
            end_without_status(folder, None)
