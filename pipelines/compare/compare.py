# SPDX-License-Identifier: Apache-2.0
"""Comparison of finished runs: what differs between them, and their paired figures."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longmem.version import __version__
from pipelines.compare.icl import compare_icl
from pipelines.compare.perplexity import compare_perplexity
from pipelines.compare.runs import FinishedRun, differences, open_runs

KINDS: dict[str, Callable[[Sequence[FinishedRun]], dict[str, Any]]] = {
    "perplexity": compare_perplexity,
    "icl": compare_icl,
}


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the comparison of the runs in these folders to the first of them, as JSON values.

    Raises ConfigError and OutputError for runs that cannot be compared, with the reason.
    """
    runs = open_runs(folders)
    return {
        "longmem_version": __version__,
        "kind": runs[0].kind,
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "model": run.summary["model"]["name"],
                "created": run.summary["created"],
                "command": run.summary["command"],
            }
            for run in runs
        ],
        "differences": [asdict(each) for each in differences(runs)],
        **KINDS[runs[0].kind](runs),
    }
