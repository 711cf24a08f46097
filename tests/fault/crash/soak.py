# SPDX-License-Identifier: Apache-2.0
"""Hours of store rounds and of Ray jobs with killed workers and drivers, on one cluster, with sampled resources.

    python -m tests.fault.crash.soak --minutes 120 [--seed N] [--out DIR] [--pause-s S]

The run leaves in DIR: samples.jsonl, summary.json and soak.png (every five minutes and at the end). It keeps all files
of the first job or round that failed, which also ends the run with exit code 1.
"""

import argparse
import json
import os
import secrets
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

# before Ray is imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ray

from actors.cluster import connect
from tests.fault.crash import ray_job
from tests.fault.crash.damage import damaged_copies, judge
from tests.fault.crash.expected import Violation
from tests.fault.crash.full_disk import NoSmallDisk, fill_and_free
from tests.fault.crash.ray_nemesis import ROLES, WorkerNemesis
from tests.fault.crash.rounds import StoreRounds
from tests.fault.crash.samples import Sampler, growth, plot

OBJECT_STORE_BYTES = 2**28
SUMMARY_EVERY_S = 300.0
JOB_S = 900.0
"""Seconds after which a job counts as hung."""
DRIVER_KILL_SHARE = 0.4
"""Share of the runs of a job that end with SIGKILL of its driver."""
WORKERS_TOO_SHARE = 0.5
"""Share of those in which all its workers are killed at the same time."""
MAX_GAVE_UP = 3
"""Maximal number of drivers of one job that may end because every new worker of a stage was killed too early."""
NOT_KILLED = {
    "raylet, gcs": "they live as long as the cluster; loss of a node has a test of its own",
    "coordinator": "it is the driver process of a job: see driver_kills",
}


class Soak:
    """One whole run. `run` raises Violation at the first loss."""

    def __init__(self, out: Path, minutes: float, seed: int, pause_s: float, kill_every_s: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._seed = seed
        self._pause_s = pause_s
        self._random = Random(f"soak-{seed}")
        self._start_s = monotonic()
        self._end_s = self._start_s + 60 * minutes
        self.counts: Counter[str] = Counter()
        self._loss = ""
        self._not_run: dict[str, str] = {}
        self._expected = ray_job.prepare(out / "reference")
        self._rounds = StoreRounds(out / "store", seed)
        self._connection = connect("local", ray_job.NUM_CPUS, OBJECT_STORE_BYTES)
        self._address = str(ray.get_runtime_context().gcs_address)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        self._nemesis = WorkerNemesis(self._address, Random(f"nemesis-{seed}"), kill_every_s, self._work_done)
        self._sampler = Sampler(
            out / "samples.jsonl",
            {"store_rounds": out / "store", "jobs": out / "jobs", "ray_session": session},
            _object_store_bytes,
        )
        (out / "jobs").mkdir(exist_ok=True)

    def run(self) -> None:
        told_s = monotonic()
        turn = 0
        while monotonic() < self._end_s:
            self._job(turn)
            self._store_round(turn)
            turn += 1
            if monotonic() - told_s > SUMMARY_EVERY_S:
                told_s = monotonic()
                self.write_summary()
            sleep(self._pause_s)

    def close(self, loss: str = "") -> None:
        self._loss = loss
        self._nemesis.close()
        self._sampler.close()
        self.write_summary()
        self._connection.close()

    def _store_round(self, turn: int) -> None:
        self._rounds.run_round()
        self._rounds.forget_past()
        if turn % 5 == 0:
            folder = self._out / "damaged"
            copies = damaged_copies(Path(self._rounds.uri), folder, self._random, count=12)
            for damage in judge(self._rounds.expected.path, copies):
                self.counts[f"damage {damage.verdict}"] += 1
                if damage.verdict not in ("intact", "told"):
                    raise Violation(f"damage was not told: {damage}")
            shutil.rmtree(folder)
        if turn % 10 == 5:
            try:
                fill_and_free(self._out / "full_disk")
                self.counts["full_disks"] += 1
            except NoSmallDisk as error:
                self._not_run["full disk"] = str(error)
            shutil.rmtree(self._out / "full_disk", ignore_errors=True)

    def _job(self, turn: int) -> None:
        """Run one job to its end, however often its driver is killed. Raises Violation."""
        out = self._out / "jobs" / f"job-{turn}"
        resume = False
        gave_up_before = self.counts["gave_up"]
        while not self._run_driver(out, resume):
            resume = out.exists()
            if self.counts["gave_up"] - gave_up_before > MAX_GAVE_UP:
                raise Violation(f"{out} gave up {MAX_GAVE_UP + 1} times; see {out.with_suffix('.log')}")
        if (found := ray_job.digests(out)) != self._expected:
            self.counts["differences"] += 1
            raise Violation(f"{out} differs from the undisturbed run: {found} != {self._expected}")
        self.counts["jobs"] += 1
        shutil.rmtree(out)
        out.with_suffix(".log").unlink()

    def _work_done(self) -> int:
        """Return the total size of the jobs' journals in bytes, which grows with every scored segment."""
        done = 0
        for journal in (self._out / "jobs").glob("*/journal.jsonl"):
            # a job's folder may disappear while this thread reads it
            with suppress(FileNotFoundError):
                done += journal.stat().st_size
        return done

    def _run_driver(self, out: Path, resume: bool) -> bool:
        """Run the driver; return True if it finished, False if it was killed."""
        driver = ray_job.start(self._address, self._out / "reference", out, resume)
        self.counts["resumes" if resume else "starts"] += 1
        kill_s = self._random.uniform(3, 45) if self._random.random() < DRIVER_KILL_SHARE else JOB_S
        start_s = monotonic()
        self._nemesis.armed.set()
        try:
            while driver.poll() is None and monotonic() - start_s < kill_s:
                sleep(0.2)
        finally:
            self._nemesis.armed.clear()
            all_at_once = self._random.random() < WORKERS_TOO_SHARE
            workers = self._nemesis.workers() if all_at_once and driver.poll() is None else []
            killed = driver.poll() is None
            self._nemesis.kill_with_driver(driver, workers if killed else [])
            driver.wait()
        if killed and kill_s == JOB_S:
            raise Violation(f"{out} was not done after {JOB_S:g} s")
        if killed:
            self.counts["driver_kills"] += 1
            self.counts["whole_job_kills"] += bool(workers)
            return False
        if driver.returncode == ray_job.GAVE_UP:
            self.counts["gave_up"] += 1
            return False
        if driver.returncode:
            raise Violation(f"{out} ended with {driver.returncode}; see {out.with_suffix('.log')}")
        return True

    def write_summary(self) -> None:
        strikes = self._nemesis.counts
        summary: dict[str, Any] = {
            "seed": self._seed,
            "minutes": round((monotonic() - self._start_s) / 60, 1),
            "losses": int(bool(self._loss)),
            "differences": self.counts["differences"],
            "loss": self._loss,
            "jobs": {name: self.counts[name] for name in ("jobs", "starts", "resumes", "gave_up")},
            "worker_kills": {role: strikes[f"kills {role}"] for role in ROLES},
            "worker_kills_with_driver": {role: strikes[f"kills_with_driver {role}"] for role in ROLES},
            "worker_stops": {role: strikes[f"stops {role}"] for role in ROLES},
            "driver_kills": self.counts["driver_kills"],
            "whole_job_kills": self.counts["whole_job_kills"],
            "store": self._rounds.summary(),
            "damages": {
                name.removeprefix("damage "): count
                for name, count in sorted(self.counts.items())
                if name.startswith("damage ")
            },
            "full_disks": self.counts["full_disks"],
            "never_killed": NOT_KILLED,
            "not_run": self._not_run,
            "nemesis_errors": dict(self._nemesis.errors),
            "samples": len(self._sampler.samples),
            "sample_errors": dict(Counter(self._sampler.errors)),
            "growth": growth(list(self._sampler.samples)),
        }
        (self._out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if self._sampler.samples:
            plot(list(self._sampler.samples), self._out / "soak.png")


def _object_store_bytes() -> float:
    from ray._private.internal_api import node_stats

    (node,) = [node for node in ray.nodes() if node["Alive"]]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return float(stats.store_stats.object_store_bytes_used)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=None, help="random where none is given; printed")
    parser.add_argument("--out", type=Path, default=None, help="a new temporary folder where none is given")
    parser.add_argument("--pause-s", type=float, default=0.0, help="rest between two rounds")
    parser.add_argument("--kill-every-s", type=float, default=6.0, help="between two strikes at workers, on average")
    given = parser.parse_args()
    # the fork warnings concern Ray's forks, which exec other programs at once
    warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    out = given.out or Path(tempfile.mkdtemp(prefix="longmem-soak-"))
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out {out} is not empty; give a new folder")
    print(f"seed {seed}, results in {out}", flush=True)
    soak = Soak(out.absolute(), given.minutes, seed, given.pause_s, given.kill_every_s)
    loss = ""
    try:
        soak.run()
    except (Violation, AssertionError) as error:
        loss = "".join(traceback.format_exception(error))
        print(loss, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the summary is of what was run", file=sys.stderr)
    finally:
        soak.close(loss)
    print((out / "summary.json").read_text(encoding="utf-8"))
    return 1 if loss else 0


if __name__ == "__main__":
    sys.exit(main())
