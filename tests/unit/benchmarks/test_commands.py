"""`python -m benchmarks`: what a user may get wrong is told in a line."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_an_error_is_a_line_not_a_traceback() -> None:
    command = [sys.executable, "-m", "benchmarks", "jobs", "--only", "nothing like it"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --only 'nothing like it': expected a part of one of these names: in process")
    assert "Traceback" not in done.stderr
