# SPDX-License-Identifier: Apache-2.0
"""The entry point of the `longmem` script: takes over Ctrl-C before anything that takes time is imported.

The application itself is `pipelines.app`.
"""

from time import monotonic
from typing import Any

from pipelines.command.interrupts import take_over


def main() -> Any:
    """Run the command line. Exit codes: 0 ok, 1 some documents failed, 2 usage or bad input, 130 interrupted."""
    begun_s = monotonic()
    take_over()
    # only now: typer, rich and what the options need take tenths of a second, and Ctrl-C may come meanwhile
    from pipelines.command.console import guard_streams

    guard_streams()
    from pipelines.app import app

    return app(prog_name="longmem", obj=begun_s)


def __getattr__(name: str) -> Any:
    if name == "app":
        from pipelines.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
