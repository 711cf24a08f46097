# SPDX-License-Identifier: Apache-2.0
"""Kills, stops and hangs up whole jobs at random moments, and compares their output with an uninterrupted run.

    python -m tests.fault.crash.kills --kills 200 [--ray-share 0.5] [--seed N] [--out DIR]

In process, a job runs as a process of its own that a fork server starts with the imports done. On Ray, the driver and
the workers are killed. Only SIGKILL counts as a kill; SIGSTOP, SIGHUP, SIGTERM and SIGINT are sent in addition. At
least half of the kills come after the first result is in the journal. A third of the jobs run under a wall clock that
jumps by hours and days, forwards and backwards.

A finished job must have byte-identical tables, and its store every block once. Prints one JSON object. The exit code is
1 at the first difference, which is kept in DIR.
"""

import argparse
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

# before Ray is imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from longmem.store.config import MemoryStore
from tests.fault.crash import ray_job
from tests.fault.crash.expected import Violation
from tests.fault.crash.killed_jobs import lines_of, run_and_kill

PRELOADED = [
    "torch",
    "transformers",
    "pyarrow.parquet",
    "faiss",
    "pipelines.perplexity.job",
    "pipelines.perplexity.report",
]
"""Modules imported once, by the fork server: a job then starts in a tenth of the time. LanceDB starts threads and is
excluded."""
CHARACTERS = 3_000
JOB_S = 300.0
"""Seconds without progress after which a job counts as hung."""
KILL_SHARE = 0.75
"""Share of SIGKILL among the strikes in process; the others are signals that a job handles."""
EARLY_SHARE = 0.3
"""Share of the kills in process that come before the first result can be in the journal."""
ANSWERED = {signal.SIGHUP: 130, signal.SIGTERM: 130, signal.SIGINT: 130}
"""Signals that end a job, with the required exit code."""
RAY_STRIKES = ("worker",) * 8 + ("driver", "asked")
"""Distribution of one job's strikes on Ray; `asked` is SIGTERM."""
CLOCK_SOURCE = Path(__file__).with_name("clock.c")
JUMPS_S = (7200, -7200, 90_000, -90_000, 0)
JUMP_SHARE = 0.02
"""Share of the polls of a job, some milliseconds apart, at which the clock jumps."""


@dataclass
class Campaign:
    """Runs jobs until `kills` SIGKILLs were sent. `run` raises Violation at the first difference."""

    folder: Path
    seed: int
    kills: int
    ray_share: float
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = Random(f"kills-{self.seed}")
        self._expected = ray_job.prepare(self.folder / "reference", CHARACTERS)
        self._num_segments = lines_of(self.folder / "reference" / "undisturbed" / "journal.jsonl")
        self._preloaded = self.folder / "clock.so"
        compiler = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
        subprocess.run([*compiler, "-o", str(self._preloaded), str(CLOCK_SOURCE), "-ldl"], check=True)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def run(self) -> None:
        turn = 0
        while self._left("ray") or self._left("process"):
            turn += 1
            if self._left("process"):
                self._in_process(turn)
            if self._left("ray") and (turn % 4 == 0 or not self._left("process")):
                self._on_ray(turn)

    def _left(self, where: str) -> int:
        share = self.ray_share if where == "ray" else 1 - self.ray_share
        return max(0, round(self.kills * share) - self.counts[f"kills {where}"])

    def _in_process(self, turn: int) -> None:
        out = self.folder / f"process-{turn}"
        out.mkdir()
        clock = self._jumping_clock(out) if turn % 3 == 0 else None
        resume = False
        strikes = self._random.randint(2, 6) if self._left("process") else 0
        while True:
            code = self._one_life(out, resume, strike=strikes > 0, clock=clock)
            strikes -= 1
            if code == 0:
                break
            resume = (out / "job" / "job.json").exists()
        self._check(out / "job", out / "memory.lance", f"process-{turn}")
        self.counts["jobs in process"] += 1
        self.counts["jobs with a jumping clock"] += clock is not None
        shutil.rmtree(out)

    def _one_life(self, out: Path, resume: bool, strike: bool, clock: Path | None) -> int:
        """Run one process of a job, with or without a strike; return its exit code."""
        random, journal = self._random, out / "job" / "journal.jsonl"
        before = lines_of(journal)
        early = random.random() < EARLY_SHARE and not before
        delay_s = random.uniform(0.0, 1.5) if early else random.uniform(0.0, 0.05)
        goal = 0 if early else before + random.randint(1, max(1, (self._num_segments - before) // 3))
        process = self._context.Process(
            target=run_command,
            args=(self._arguments(out, resume), str(out / "log.txt"), str(self._preloaded), clock and str(clock)),
        )
        process.start()
        assert process.pid is not None
        begun = time.monotonic()
        while strike and process.exitcode is None and lines_of(journal) < goal:
            self._check_alive(begun, out)
            _jump(clock, random)
            time.sleep(0.002)
        if strike and process.exitcode is None:
            time.sleep(delay_s)
            self._strike(process, after_first=lines_of(journal) > 1)
        while process.exitcode is None:
            self._check_alive(begun, out)
            _jump(clock, random)
            process.join(0.1)
        code = process.exitcode
        if code not in (0, -signal.SIGKILL, 130, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT):
            raise Violation(f"{out} ended with {code}: {(out / 'log.txt').read_text()[-2000:]}")
        return code

    def _strike(self, process: multiprocessing.process.BaseProcess, after_first: bool) -> None:
        pid = process.pid
        assert pid is not None
        if self._random.random() < 0.2:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self._random.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGCONT)
            self.counts["stops"] += 1
        if self._random.random() < KILL_SHARE:
            os.kill(pid, signal.SIGKILL)
            self.counts["kills process"] += 1
            self.counts["kills after the first result"] += after_first
            return
        number = self._random.choice(sorted(ANSWERED))
        os.kill(pid, number)
        process.join(60)
        # a job may have finished by itself, and one without a handler so far dies of the signal
        if process.exitcode not in (0, ANSWERED[number], -number):
            raise Violation(f"{signal.Signals(number).name} gave exit code {process.exitcode}, expected 130")
        self.counts[f"{signal.Signals(number).name} answered" if process.exitcode else "too late"] += 1

    def _on_ray(self, turn: int) -> None:
        out, reference = self.folder / f"ray-{turn}", self.folder / "reference"
        strikes = list(RAY_STRIKES)
        self._random.shuffle(strikes)
        arguments = ["perplexity", str(reference / "books"), "--model", str(reference / "checkpoint"), "--tokens"]
        pools = ["--threads", "1", "--max-tries", "50", "--address", "local", "--keep-memory"]
        store = self.folder / f"ray-{turn}.lance"
        done = run_and_kill(
            [*arguments, *pools, "--store", str(store), "--out", str(out)], out, self._random.randrange(2**31), strikes
        )
        self._check(out, store, f"ray-{turn}")
        killed = [strike for strike in done if strike != "asked"]
        self.counts["kills ray"] += len(killed)
        # `run_and_kill` waits for results before each strike
        self.counts["kills after the first result"] += len(killed)
        self.counts.update(f"ray {strike}" for strike in done)
        self.counts["jobs on ray"] += 1
        shutil.rmtree(out)
        shutil.rmtree(store)
        out.with_suffix(".log").unlink()

    def _arguments(self, out: Path, resume: bool) -> list[str]:
        reference = self.folder / "reference"
        inputs = ["perplexity", str(reference / "books"), "--model", str(reference / "checkpoint"), "--tokens"]
        where = ["--address", "none", "--threads", "1", "--keep-memory", "--store", str(out / "memory.lance")]
        return [*inputs, *where, "--out", str(out / "job"), *(["--resume"] if resume else [])]

    def _check(self, out: Path, store: Path, name: str) -> None:
        if (found := ray_job.digests(out)) != self._expected:
            raise Violation(f"{name} differs from the undisturbed run: {found} != {self._expected}")
        with MemoryStore.open(store) as memory:
            segments = [info for key in memory.documents() for info in memory.segments(key)]
            verified = memory.verify()
        names = {(info.key, info.segment) for info in segments}
        expected = self._num_segments - 2 * ray_job.NUM_DOCUMENTS
        if not len(segments) == len(names) == verified == expected:
            raise Violation(f"{name} stores {len(segments)} rows of {len(names)} blocks, {expected} expected")

    @staticmethod
    def _jumping_clock(out: Path) -> Path:
        (out / "clock").write_bytes(bytes(8))
        return out / "clock"

    def _check_alive(self, begun: float, out: Path) -> None:
        if time.monotonic() - begun > JOB_S:
            raise Violation(f"{out} hangs: {(out / 'log.txt').read_text()[-2000:]}")


def run_command(arguments: list[str], log: str, preloaded: str, clock: str | None) -> None:
    """Run the command in this process, like a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if clock is not None:
        # LD_PRELOAD takes effect only in a new program
        environment = os.environ | {"LD_PRELOAD": preloaded, "LONGMEM_TEST_CLOCK": clock}
        command = "from pipelines.cli import main; main()"
        os.execve(sys.executable, [sys.executable, "-c", command, *arguments], environment)
    from pipelines.cli import main

    sys.argv = ["longmem", *arguments]
    main()


def _jump(clock: Path | None, random: Random) -> None:
    """Move the clock of a job at random."""
    if clock is not None and random.random() < JUMP_SHARE:
        # written in place: the job has the file mapped
        with clock.open("r+b") as file:
            file.write(struct.pack("<q", random.choice(JUMPS_S)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ray-share", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=None, help="random where none is given; printed")
    parser.add_argument("--out", type=Path, default=None, help="a new temporary folder where none is given")
    given = parser.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    out = given.out or Path(tempfile.mkdtemp(prefix="longmem-kills-"))
    print(f"seed {seed}, folder {out}", file=sys.stderr, flush=True)
    campaign = Campaign(out.absolute(), seed, given.kills, given.ray_share)
    begun, loss = time.monotonic(), ""
    try:
        campaign.run()
    except (Violation, AssertionError) as error:
        loss = str(error)
    total = campaign.counts["kills process"] + campaign.counts["kills ray"]
    share = campaign.counts["kills after the first result"] / max(1, total)
    result = {
        "seed": seed,
        "kills": total,
        "kills_after_first_result": round(share, 3),
        "counts": dict(sorted(campaign.counts.items())),
        "differences": int(bool(loss)),
        "loss": loss,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    print(json.dumps(result, indent=2))
    return 1 if loss else 0


if __name__ == "__main__":
    sys.exit(main())
