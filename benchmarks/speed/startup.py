# SPDX-License-Identifier: Apache-2.0
"""Start-up of the command line: seconds from a new process to its end, for commands that have little to do.

The longest are jobs of one segment, in one process and on Ray: most of it are the imports before the first score.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from shutil import rmtree
from subprocess import DEVNULL, run
from tempfile import TemporaryDirectory
from time import perf_counter, time

import numpy as np

from actors.monitoring.job_status import JobSnapshot, StageSnapshot
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import Timing
from longmem.stages import STAGES
from longmem.store.config import MemoryStore
from longmem.types import DEFAULT_NAMESPACE, DocumentKey, Fingerprint, KVBlock
from pipelines.job.folder import STATUS_FILE
from pipelines.job.output import write_json

ROOT = Path(__file__).parents[2]
FLOOR = "python -c pass"
JOB = "whole-job"
"""Output folder of the job, new in each round."""
ON_RAY = "perplexity, one segment, on Ray"
PROGRAM = (sys.executable, "-c", "from pipelines.cli import main; main()")


def startup(repeats: int) -> SpeedTable:
    """Time each command in processes of its own; the ratio is to an interpreter that does nothing.

    CPU time is that of the process. A job on Ray has none, because Ray's processes are not its children. The first
    round warms the page cache and the compiled modules, and is left out.
    """
    with TemporaryDirectory(prefix="longmem-startup-") as name:
        folder = Path(name)
        commands = {
            "--help": ("--help",),
            "--version": ("--version",),
            "perplexity --help": ("perplexity", "--help"),
            "status --out DIR": ("status", "--out", str(_write_status(folder / "job"))),
            "memory ls": ("memory", "ls", "--store", str(_write_store(folder / "memory.lance"))),
            "perplexity, missing input": ("perplexity", str(folder / "missing.txt"), "--out", str(folder / "out")),
            "perplexity, one segment": (*_job_of_one_segment(folder, "none"), "--out", str(folder / JOB)),
            ON_RAY: (*_job_of_one_segment(folder, "local"), "--out", str(folder / JOB)),
        }
        cases = {FLOOR: (sys.executable, "-c", "pass"), **{key: (*PROGRAM, *given) for key, given in commands.items()}}
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        runs: dict[str, list[tuple[float, float]]] = {key: [] for key in cases}
        for turn in range(repeats + 1):
            for key, command in cases.items():
                rmtree(folder / JOB, ignore_errors=True)
                measured = _measure(command, folder, environment, 2 if "missing" in key else 0)
                if turn:
                    runs[key].append(measured)
    lines = []
    for key, measured in runs.items():
        wall_s, cpu_s = zip(*measured, strict=True)
        lines.append(BenchmarkRow(key, Timing(wall_s) if key == ON_RAY else Timing(wall_s, cpu_s)))
    return SpeedTable("start-up of longmem", lines, {"repeats": repeats})


def _measure(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], exit_code: int
) -> tuple[float, float]:
    """Return wall and CPU seconds of one process. Raises RuntimeError where it ends with another exit code."""
    before, began = getrusage(RUSAGE_CHILDREN), perf_counter()
    done = run(command, cwd=folder, env=environment, stdout=DEVNULL, stderr=DEVNULL, check=False)
    wall_s, after = perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    if done.returncode != exit_code:
        raise RuntimeError(f"{command} ended with exit code {done.returncode}")
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _job_of_one_segment(folder: Path, address: str) -> tuple[str, ...]:
    """Write a text that is shorter than a segment, and return the command that scores it with the reference model."""
    text = folder / "text.txt"
    text.write_text("Call me Ishmael. Some years ago I went to sea.\n", encoding="utf-8")
    return ("perplexity", str(text), "--address", address, "--threads", "1")


def _write_status(folder: Path) -> Path:
    """Write the output folder of a finished job, as far as `longmem status` reads it."""
    folder.mkdir()
    now = time()
    snapshot = JobSnapshot(
        job="startup",
        name=folder.name,
        out=str(folder),
        state="finished",
        started=now - 60,
        updated=now,
        pid=os.getpid(),
        host="localhost",
        total_documents=1,
        admitted_documents=1,
        scored_documents=1,
        failed_documents=0,
        stages={stage: StageSnapshot() for stage in STAGES},
        in_flight_bytes=0,
        lag_segments=0,
        tokens_left=0,
        eta_s=None,
        checksum_failures=0,
        duplicate_puts=0,
        blocks_encoded_again=0,
        gate_mean=None,
        copy_mean=None,
        store_bytes=0,
        store_limit_bytes=None,
    )
    write_json(folder / STATUS_FILE, snapshot.to_json())
    return folder


def _write_store(folder: Path) -> Path:
    """Create a memory store that holds one block of one document."""
    width = {"kv_heads": 1, "head_dim": 4}
    sizes = {"memory_layer": 0, "chunk_tokens": 1, "segment_tokens": 1}
    identity = Fingerprint(backbone="", tokenizer="", compute_dtype="float32", kv_dtype="float32", **width, **sizes)
    numbers = np.zeros((1, *width.values()), np.float32)
    key = DocumentKey(DEFAULT_NAMESPACE, "document")
    with MemoryStore.open(str(folder)) as store:
        store.put(KVBlock(key, 0, 0, np.zeros(1, np.int32), numbers, numbers, identity))
    return folder
