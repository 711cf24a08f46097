# SPDX-License-Identifier: Apache-2.0
"""Perplexity jobs on a cluster, as processes of their own, and their expected tables.

python -m tests.fault.crash.ray_job ADDRESS FOLDER OUT [--resume]
"""

import hashlib
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from actors.config import ClusterShape
from actors.executor.timeouts import Timeouts
from longmem.errors import ClusterError
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from longmem.testing import small_longmem
from pipelines.perplexity.job import PerplexityJob, run_job

ROOT = Path(__file__).parents[3]
TABLES = ("documents.parquet", "segments.parquet", "tokens.parquet")
NUM_DOCUMENTS = 4
MAX_TRIES = 50
"""Retries of a task, high enough that a kill is not mistaken for a poisonous document."""
GAVE_UP = 3
"""Exit code of a driver whose stage had no worker for `Timeouts.no_worker_s`: the job must be resumed."""

SHAPE = {"encoders": 2, "readers": 2, "stores": 2}
NUM_CPUS = 8


def prepare(folder: Path, characters: int = 3000) -> dict[str, str]:
    """Write model and books, run the job undisturbed in this process, and return digests of its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    small_longmem(folder).save_pretrained(folder / "checkpoint")
    random = Random(0)
    words = ["".join(random.choices("aeinorstlhd", k=random.randrange(2, 9))) for _ in range(300)]
    (folder / "books").mkdir()
    for number in range(NUM_DOCUMENTS):
        length = characters * (number + 1) // NUM_DOCUMENTS
        (folder / "books" / f"book-{number}.txt").write_text(" ".join(random.choices(words, k=length))[:length])
    summary = run_job(_job(folder, folder / "undisturbed", None, resume=False), Console(file=StringIO()))
    assert summary["failures"] == [], f"the undisturbed run failed: {summary['failures']}"
    return digests(folder / "undisturbed")


def digests(out: Path) -> dict[str, str]:
    return {table: hashlib.sha256((out / table).read_bytes()).hexdigest() for table in TABLES}


def start(address: str, folder: Path, out: Path, resume: bool) -> "subprocess.Popen[bytes]":
    """Start a driver process that joins the cluster; its output goes to a file next to `out`."""
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fault.crash.ray_job", address, str(folder), str(out)] + ["--resume"] * resume,
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )


def _job(folder: Path, out: Path, cluster: ClusterShape | None, resume: bool) -> PerplexityJob:
    return PerplexityJob(
        inputs=(str(folder / "books"),),
        out=out,
        model=ModelSource(str(folder / "checkpoint")),
        cluster=cluster,
        threads=1,
        limits=Limits(8, 2**28),
        keep_tokens=True,
        resume=resume,
    )


def main() -> None:
    address, folder, out, *resume = sys.argv[1:]
    cluster = ClusterShape(address=address, **SHAPE, timeouts=Timeouts(max_tries=MAX_TRIES))
    job = _job(Path(folder), Path(out), cluster, bool(resume))
    try:
        summary: dict[str, Any] = run_job(job, Console(file=sys.stdout))
    except ClusterError as error:
        print(error)
        sys.exit(GAVE_UP)
    print(json.dumps({"failures": summary["failures"]}))
    if summary["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
