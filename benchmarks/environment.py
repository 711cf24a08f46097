# SPDX-License-Identifier: Apache-2.0
"""Machine and software versions of a measurement, stored with it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch


def environment() -> dict[str, Any]:
    """Return machine and versions. Times are comparable only within one file, and as ratios."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "torch_threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lancedb", "faiss-cpu", "ray")},
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
