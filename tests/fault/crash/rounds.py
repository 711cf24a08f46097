# SPDX-License-Identifier: Apache-2.0
"""Rounds of writers that die, with a concurrent reader, and a check of the quiet store after each.

python -m tests.fault.crash.rounds --seed 1 --rounds 5 [--folder DIR]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic

from tests.fault.crash.checker import Checked, check
from tests.fault.crash.expected import ExpectedFile, Violation
from tests.fault.crash.nemesis import Fault, Nemesis
from tests.fault.crash.writer import ROOT, Writer

NUM_WRITERS = 2
LIVES = 6
"""Number of lives of each writer in a round."""


@dataclass
class StoreRounds:
    """One store over many rounds. `run_round` raises Violation at the first broken promise."""

    folder: Path
    seed: int
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.uri = str(self.folder / "memory.lance")
        self.expected = ExpectedFile(self.folder / "expected.jsonl")
        self.nemesis = Nemesis(Random(f"{self.seed}"))
        names = [f"w{number}" for number in range(NUM_WRITERS)]
        self._writers = [
            Writer(name, self.uri, self.expected, self.nemesis, Random(f"{self.seed}-{name}")) for name in names
        ]
        self.checked = Checked(0, 0, 0, 0)

    def run_round(self, lives: int = LIVES) -> Checked:
        reader = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.crash.reader", self.uri, str(self.expected.path), f"{self.seed}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        try:
            broken: list[BaseException] = []
            faults = [self.nemesis.draw(lives) for _ in self._writers]

            def live(writer: Writer, mine: list[Fault]) -> None:
                try:
                    for fault in mine:
                        if broken or reader.poll() is not None:
                            return
                        writer.live(fault, lambda: bool(broken))
                except BaseException as error:
                    broken.append(error)
                    raise

            with ThreadPoolExecutor(len(self._writers)) as pool:
                for done in [
                    pool.submit(live, writer, mine) for writer, mine in zip(self._writers, faults, strict=True)
                ]:
                    done.result()
            printed, errors = reader.communicate("", timeout=120)
        finally:
            reader.kill()
            reader.wait()
        if reader.returncode:
            raise Violation(f"the reader ended with {reader.returncode}:\n{errors}")
        self.counts.update(json.loads(printed.splitlines()[-1]))
        self.counts["rounds"] += 1
        self.checked = check(self.uri, self.expected)
        return self.checked

    def forget_past(self) -> None:
        """Restart the expected-state file after a round with the current content."""
        self.expected.forget_past()

    def summary(self) -> dict[str, int | dict[str, int]]:
        operations = sum((writer.counts for writer in self._writers), Counter[str]())
        return {
            "rounds": self.counts["rounds"],
            "kills": self.nemesis.counts["kills"],
            "stops": self.nemesis.counts["stops"],
            "failpoints": self.nemesis.steps.total(),
            "by_failpoint": dict(sorted(self.nemesis.steps.items())),
            "missed_failpoints": dict(sorted(self.nemesis.missed.items())),
            "clean_ends": self.nemesis.counts["clean_ends"],
            "operations": dict(sorted(operations.items())),
            "sent": self.expected.num_sent,
            "acknowledged": self.expected.num_acked,
            "reader": {name: count for name, count in sorted(self.counts.items()) if name != "rounds"},
            "live_bytes": self.checked.live_bytes,
            "disk_bytes": self.checked.disk_bytes,
            "losses": 0,
        }

    def line(self) -> str:
        """Return a one-line summary of a run; a run with a loss raises instead."""
        found = self.summary()
        return "{rounds} rounds, {kills} kills, {stops} stops, {failpoints} failpoints, {losses} losses".format(**found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lives", type=int, default=LIVES)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="crash-"))
    rounds = StoreRounds(folder, arguments.seed)
    for number in range(arguments.rounds):
        start = monotonic()
        checked = rounds.run_round(arguments.lives)
        print(f"round {number}: {monotonic() - start:.1f} s, {checked}", flush=True)
    print(json.dumps(rounds.summary(), indent=2))
    print(rounds.line())


if __name__ == "__main__":
    main()
