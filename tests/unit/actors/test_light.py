# SPDX-License-Identifier: Apache-2.0
"""Cost of watching a job: neither a monitor's process nor a status command imports torch."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lancedb", "faiss")


@pytest.mark.parametrize(
    "module",
    [
        "actors.monitoring.monitor_actor",
        "actors.monitoring.live_jobs",
        "pipelines.watch.status",
        "pipelines.watch.export",
    ],
)
def test_watching_loads_no_model(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
