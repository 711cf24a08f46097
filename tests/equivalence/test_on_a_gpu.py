# SPDX-License-Identifier: Apache-2.0
"""GPU code on a simulated device (`tests.on_a_gpu.pretended`).

The tests run in one process of their own, because torch registers a device permanently, and its autograd engine only
before the first device exists.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

CHECKS = Path(__file__).parents[1] / "on_a_gpu"


def test_on_a_gpu() -> None:
    checks = [str(CHECKS / name) for name in ("models.py", "benchmark.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *checks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert " passed" in done.stdout
