# SPDX-License-Identifier: Apache-2.0
"""Ownership of an output folder, and atomic files in it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longmem.errors import OutputError
from pipelines.job.folder import JobFolder
from pipelines.job.output import write_text

IDENTITY = {"job": "perplexity", "inputs": ["/books/a.txt"], "settings": {"top_k": 64}, "limit_documents": None}


def begin(path: Path, identity: dict[str, Any] = IDENTITY) -> str:
    with JobFolder(path, resume=False) as folder:
        return folder.claim(identity)


def test_a_new_job_takes_a_new_or_empty_folder(tmp_path: Path) -> None:
    assert begin(tmp_path / "not" / "yet" / "there")
    (tmp_path / "empty").mkdir()
    job_id = begin(tmp_path / "empty")
    assert json.loads((tmp_path / "empty" / "job.json").read_text()) == {"id": job_id, "identity": IDENTITY}
    assert begin(tmp_path / "other") != job_id, "jobs that share a store need names of their own"


def test_a_job_that_could_not_begin_may_be_given_again(tmp_path: Path) -> None:
    """Check a retry: bad input is found after the folder was locked, but before it holds a job."""
    for _ in range(2):
        with JobFolder(tmp_path / "out", resume=False):
            pass
    assert begin(tmp_path / "out")


def test_a_resumed_job_keeps_its_id(tmp_path: Path) -> None:
    job_id = begin(tmp_path / "out")
    before = (tmp_path / "out" / "job.json").read_bytes()
    with JobFolder(tmp_path / "out", resume=True) as folder:
        assert folder.claim(dict(reversed(IDENTITY.items()))) == job_id
    assert (tmp_path / "out" / "job.json").read_bytes() == before


def test_claim_of_a_job_before_there_was_a_setting_resumes_it_with_what_it_did(tmp_path: Path) -> None:
    job_id = begin(tmp_path / "out")
    for rule, same in (("parse", True), ("text", False)):
        identity = {**IDENTITY, "settings": {"top_k": 64, "special_tokens": rule}}
        with JobFolder(tmp_path / "out", resume=True) as folder:
            if same:
                assert folder.claim(identity) == job_id
            else:
                with pytest.raises(OutputError, match="settings: "):
                    folder.claim(identity)


def test_resume_in_a_new_folder_begins_the_job(tmp_path: Path) -> None:
    """Check that a script may always pass --resume."""
    with JobFolder(tmp_path / "out", resume=True) as folder:
        assert folder.claim(IDENTITY)


def test_what_json_makes_of_an_identity_is_compared(tmp_path: Path) -> None:
    identity = {"inputs": ("a", "b"), "by_number": {1: 2}}
    begin(tmp_path / "out", identity)
    with JobFolder(tmp_path / "out", resume=True) as folder:
        folder.claim(identity)


@pytest.mark.parametrize("resume", [False, True])
def test_other_files_are_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        JobFolder(tmp_path, resume)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "job.json").exists()


def test_another_job_is_not_overwritten(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    with pytest.raises(OutputError, match=r"holds another job; choose another --out, or continue .* --resume"):
        JobFolder(tmp_path / "out", resume=False)
    with JobFolder(tmp_path / "out", resume=True) as folder:  # the refused one let go of the lock
        folder.claim(IDENTITY)


def test_a_job_is_resumed_only_as_itself(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    others = {**IDENTITY, "settings": {"top_k": 32}, "inputs": ["/books/" + "b" * 500], "search": "faiss"}
    with JobFolder(tmp_path / "out", resume=True) as folder, pytest.raises(OutputError) as caught:
        folder.claim(others)
    message = str(caught.value)
    assert 'settings: {"top_k": 64} != {"top_k": 32}' in message
    assert 'search: null != "faiss"' in message
    assert 'inputs: ["/books/a.txt"] != ["/books/bbb' in message
    assert "limit_documents" not in message, "only what differs"
    assert "job:" not in message
    assert len(message) < 700, "a long list of inputs is shortened"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": "a"}', '{"id": "a", "identity": 3}', "\xff"])
def test_a_broken_job_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_bytes(content.encode("latin-1"))
    with JobFolder(tmp_path, resume=True) as folder, pytest.raises(OutputError, match=r"cannot read .*job\.json"):
        folder.claim(IDENTITY)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    for path in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(OutputError, match=r"cannot use output folder .*; choose another --out"):
            JobFolder(path, resume=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for path in (tmp_path, tmp_path / "out"):
            with pytest.raises(OutputError, match="Permission denied; choose another --out"):
                JobFolder(path, resume=False)
    finally:
        tmp_path.chmod(0o700)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from pipelines.job.folder import JobFolder\n"
        "folder = JobFolder(Path(sys.argv[1]), resume=False); folder.claim({})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin
    assert process.stdout
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            for resume in (False, True):
                with pytest.raises(OutputError, match="another process is running the job"):
                    JobFolder(tmp_path / "out", resume)
        finally:
            process.send_signal(signal.SIGKILL)
    # a killed process holds no lock
    with JobFolder(tmp_path / "out", resume=True) as folder:
        folder.claim({})


def test_one_job_at_a_time_in_one_process(tmp_path: Path) -> None:
    with JobFolder(tmp_path, resume=False), pytest.raises(OutputError, match="another process"):
        JobFolder(tmp_path, resume=True)
    JobFolder(tmp_path, resume=False).close()


# --- writing ----------------------------------------------------------------------------------------------------


Write = Callable[[JobFolder, int], None]
WRITES: dict[str, Write] = {
    "a.json": lambda folder, number: folder.write_json("a.json", {"number": number}),
    "a.txt": lambda folder, number: write_text(folder.path / "a.txt", f"number {number} é"),
    "a.parquet": lambda folder, number: folder.write_table("a.parquet", pa.table({"number": [number]})),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_again_replaces_the_whole_file(tmp_path: Path, name: str) -> None:
    with JobFolder(tmp_path, resume=False) as folder:
        WRITES[name](folder, 1)
        first = (tmp_path / name).read_bytes()
        with (tmp_path / name).open("rb") as reader:
            WRITES[name](folder, 2)
            assert reader.read() == first, "who reads the old file goes on reading it"
        assert (tmp_path / name).read_bytes() != first
        WRITES[name](folder, 1)
        assert (tmp_path / name).read_bytes() == first
    assert sorted(each.name for each in tmp_path.iterdir()) == [name, "job.lock"]


@pytest.mark.parametrize("name", WRITES)
def test_what_cannot_be_written_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    with JobFolder(tmp_path, resume=False) as folder:
        WRITES[name](folder, 1)
        first = (tmp_path / name).read_bytes()
        (tmp_path / f".{name}.part").mkdir()  # blocks the temporary name, even for root
        with pytest.raises(OutputError, match=rf"cannot write .*{name}.* --resume"):
            WRITES[name](folder, 2)
        assert (tmp_path / name).read_bytes() == first


def test_numbers_that_json_has_not_are_never_written(tmp_path: Path) -> None:
    with JobFolder(tmp_path, resume=False) as folder:
        folder.write_json("a.json", {"value": 1.5})
        with pytest.raises(ValueError, match="not JSON compliant"):
            folder.write_json("a.json", {"value": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 1.5}


def test_a_first_write_that_failed_leaves_the_folder_usable(tmp_path: Path) -> None:
    """Check a disk that was full for job.json: the message says to run again, so that must work."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".job.json.part").write_text("")  # the state after ENOSPC
    for resume in (True, False):
        try:
            with JobFolder(out, resume) as folder:
                folder.claim(IDENTITY)
        except OutputError:
            continue
        break
    else:
        pytest.fail("neither a new job nor --resume takes the folder")


def test_tables_are_compressed_parquet(tmp_path: Path) -> None:
    table = pa.table({"number": list(range(1000))})
    with JobFolder(tmp_path, resume=False) as folder:
        folder.write_table("a.parquet", table)
    assert pq.read_table(tmp_path / "a.parquet").equals(table)
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
