# SPDX-License-Identifier: Apache-2.0
"""`make soak` in a few minutes: it runs, strikes, compares, and leaves its results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_short_soak_leaves_its_results(tmp_path: Path) -> None:
    arguments = ["--minutes", "2", "--seed", "2", "--kill-every-s", "3", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fault.crash.soak", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=800,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["losses"], summary["differences"]) == (0, 0)
    assert summary["jobs"]["jobs"] > 0
    assert sum(summary["worker_kills"].values()) > 0
    assert summary["store"]["rounds"] > 0
    assert summary["sample_errors"] == {}
    assert summary["samples"] == len((tmp_path / "samples.jsonl").read_text().splitlines()) > 0
    assert (tmp_path / "soak.png").stat().st_size > 0
