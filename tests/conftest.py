# SPDX-License-Identifier: Apache-2.0
"""Shared test set-up: one thread, no network, derandomised Hypothesis. The fixtures of all tests: tests/fixtures.py."""

import os
import signal
import warnings

import tests.type_checks  # noqa: F401 - named by --jaxtyping-packages, which imports no further than `tests`

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
from hypothesis import Phase, settings

# a shell's background jobs ignore these signals, and all processes that the tests start would inherit that
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
# the explain phase is off: it runs a slow failing test hundreds of times to find the responsible lines
PHASES = (Phase.explicit, Phase.generate, Phase.target, Phase.shrink)
settings.register_profile("default", derandomize=True, deadline=None, print_blob=True, phases=PHASES)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.addoption("--data", type=Path, default=default, help="folder with books_test/, for tests marked `data`")


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, except in a process that only distributes tests: importing torch for them takes seconds."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        # as errors, like those of every import of a test
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config.pluginmanager.import_plugin("tests.fixtures")
