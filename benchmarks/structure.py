# SPDX-License-Identifier: Apache-2.0
"""Measures how much of the source one segment passes: `python benchmarks/structure.py [CHECKOUT]`, by default this one.

Runs one small perplexity job in this process and counts, by a profiling hook, the product's files and functions that it
enters. Sizes of the source are counted from the files that git tracks.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

PRODUCT = ("longmem", "actors", "pipelines", "benchmarks")
SUFFIXES = (".py", ".c", ".h", ".j2")
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12


def sizes(root: Path) -> dict[str, int]:
    """Return lines and files of the product, and entries of its widest folder."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    files = [root / name for name in listed if name.startswith(PRODUCT) and name.endswith(SUFFIXES)]
    modules = Counter(path.parent for path in files if path.suffix == ".py" and path.name != "__init__.py")
    return {
        "product lines": sum(len(path.read_bytes().splitlines()) for path in files),
        "product Python files": sum(path.suffix == ".py" for path in files),
        "modules of the widest folder": max(modules.values()),
        "modules directly in pipelines": modules[root / "pipelines"],
    }


class Watch:
    """A profiling hook that counts entered files and functions, and what one `score` stage passes."""

    def __init__(self, root: Path) -> None:
        self._prefixes = tuple(f"{root / package}{os.sep}" for package in PRODUCT)
        self.files: set[str] = set()
        self.functions: set[tuple[str, str, int]] = set()
        self.scores: list[tuple[int, int]] = []
        """Calls and changes of file of every score stage."""
        self._score: FrameType | None = None
        self._calls = self._changes = 0
        self._last = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame is self._score:
            self.scores.append((self._calls, self._changes))
            self._score = None
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(self._prefixes):
            return
        self.files.add(name)
        self.functions.add((name, frame.f_code.co_name, frame.f_code.co_firstlineno))
        if self._score is None:
            is_score = frame.f_code.co_name == "_run" and frame.f_locals.get("stage") == "score"
            if is_score and threading.current_thread() is threading.main_thread():
                self._score, self._calls, self._changes, self._last = frame, 0, 0, name
        elif threading.current_thread() is threading.main_thread():
            self._calls += 1
            self._changes += name != self._last
            self._last = name


def follow(root: Path) -> dict[str, int]:
    """Return what a small job enters, from the command line to its report. The store is LanceDB."""
    from typer.testing import CliRunner

    from longmem.testing import small_longmem
    from pipelines.cli import app

    with tempfile.TemporaryDirectory() as folder:
        small_longmem(Path(folder)).save_pretrained(Path(folder) / "model")
        (Path(folder) / "book.txt").write_text(TEXT)
        options = ["--model", f"{folder}/model", "--address", "none", "--threads", "1", "--out", f"{folder}/out"]
        watch = Watch(root)
        threading.setprofile(watch)
        sys.setprofile(watch)
        try:
            result = CliRunner().invoke(app, ["perplexity", f"{folder}/book.txt", *options])
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        assert result.exit_code == 0, result.output
    calls, changes = sorted(watch.scores)[len(watch.scores) // 2]
    return {
        "files entered": len(watch.files),
        "functions entered": len(watch.functions),
        "calls in one score stage": calls,
        "changes of file in one score stage": changes,
    }


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).absolute()
    sys.path.insert(0, str(checkout))
    for figure, number in {**sizes(checkout), **follow(checkout)}.items():
        print(f"{figure:40} {number:>8,}")
