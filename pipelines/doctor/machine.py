# SPDX-License-Identifier: Apache-2.0
"""Checks of installation and machine behind `longmem doctor`.

Every check returns findings and never raises, because it must also report a broken installation. Ray is confined to
`actors/`, so the caller passes the function that finds a cluster.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.command.command_line import num_cores
from pipelines.job.format import GIB, gibibytes

Severity = Literal["ok", "warning", "error"]

MIN_RAM_BYTES = 2 * GIB
"""RAM for a small backbone, one window of keys and values, and Python."""
MIN_DISK_BYTES = 2 * GIB
"""Disk for keys and values of half a million tokens of a layer with 16 heads of 64 (4 KiB per token)."""
MIN_SHM_BYTES = 1 * GIB
CGROUP = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
TELLING_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")
"""Environment variables that change where or how fast a job runs, or which model files it finds."""
SIGNS: dict[Severity, tuple[str, str]] = {
    "ok": ("✓ ok", "green"),
    "warning": ("! slow", "yellow"),
    "error": ("✗ bad", "red"),
}


@dataclass(frozen=True)
class Finding:
    """Result of one check. `problem` states the fault and its remedy; None if there is none."""

    name: str
    value: str
    problem: str | None = None
    severity: Severity = "ok"
    """Effect on a job: `warning` if it runs slower or with less than it could, `error` if it cannot run."""
    advice: str | None = None
    """Option that a job gains from here; None if there is none."""


def diagnose(out: Path, *, find_cluster: Callable[[], str | None] | None = None) -> list[Finding]:
    """Check the installation and the machine. `out` is the intended output folder; nothing is created there.

    `find_cluster` returns the address of a running Ray cluster or None, or raises ClusterError.
    """
    findings = [*_packages(), *_torch(), _ram(), _disk(out)]
    if SHM.is_dir():
        findings.append(_shared_memory())
    if find_cluster:
        findings.append(_cluster(find_cluster))
    findings += [Finding(name, os.environ[name]) for name in TELLING_VARIABLES if name in os.environ]
    return findings


def render(findings: list[Finding], console: Console) -> None:
    """Print the findings as a table, each problem below its value, and a summary line."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, style = SIGNS[finding.severity]
        value = Text(finding.value)
        if finding.problem:
            value.append(f"\n{finding.problem}", style=style)
        if finding.advice:
            value.append(f"\n{finding.advice}", style="cyan")
        table.add_row(Text(sign, style=style), Text(finding.name, style="bold"), value)
    console.print(table)
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    if errors:
        console.print(Text(f"\n{errors} found that stop a job, {warnings} that slow it down.", style="bold red"))
    else:
        console.print(Text(f"\nJobs can run here{f', {warnings} found that slow them down' if warnings else ''}."))


def _packages() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    try:
        required = metadata.requires("longmem") or []
        yield Finding("longmem", metadata.version("longmem"))
    except metadata.PackageNotFoundError:
        yield Finding("longmem", "not installed", "this Python sees the sources only: run `pip install -e .`", "error")
        return
    for requirement in map(Requirement, required):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    """Compare the installed version of a distribution with the requirement."""
    name = requirement.name
    install = f"run `pip install '{requirement}'`"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", install, "error")
    if not _satisfies(version, requirement.specifier):
        minimum = str(requirement.specifier).removeprefix(">=")
        return Finding(name, version, f"needs at least {minimum}: {install}", "error")
    return Finding(name, version)


def _satisfies(version: str, specifier: SpecifierSet) -> bool:
    """Return whether the release of an installed version is allowed; pre-releases and local builds count as it."""
    try:
        return specifier.contains(Version(version).base_version)
    except InvalidVersion:
        return not specifier


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of the wheel does not load here
        yield Finding("torch import", "failed", f"{error}: reinstall torch", "error")
        return
    from longmem.model.precision import MIN_SPEEDUP, bfloat16_speedup

    # a job sets its threads itself, whatever OMP_NUM_THREADS says
    cores, threads = usable_cores(), num_cores()
    problem = None
    if threads > max(1, cores):
        problem = (
            f"jobs start {threads} threads, which would share {cores:g} cores and wait for each other: give them "
            f"--threads {max(1, int(cores))}"
        )
    yield Finding(
        "CPU",
        f"{cores:g} cores usable of {os.cpu_count()}, jobs use {threads} threads together",
        problem,
        "warning" if problem else "ok",
    )
    speedup = bfloat16_speedup()
    yield Finding(
        "bfloat16",
        f"{speedup:.1f}× the speed of float32 (512×512 matrix product)",
        advice="give jobs --dtype auto: it measures the model, and takes bfloat16 where perplexity stays"
        if speedup >= MIN_SPEEDUP
        else None,
    )
    yield _compute_types()
    yield _search()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPU", ", ".join(gpus) or "none, jobs run on the CPU")


def _compute_types() -> Finding:
    from longmem.model.remembered_dtype import SMALL_BYTES, remembered_choices

    chosen = "; ".join(f"{choice.model} {choice.dtype}" for choice in remembered_choices())
    small = f"float32 for models below {SMALL_BYTES // 2**20} MiB"
    return Finding("compute types", f"{small}; {chosen or 'no larger one was measured here'}")


def _search() -> Finding:
    from longmem.errors import ConfigError
    from longmem.retrieval import choose_engine, create_search

    engine = choose_engine("auto", "cpu")
    if engine != "native":
        problem = "no C compiler (cc, gcc or clang) on PATH: searches take several times as long; install one"
        return Finding("search", engine, problem, "warning")
    try:
        create_search(engine)
    except ConfigError as error:
        return Finding("search", engine, str(error), "error")
    return Finding("search", f"{engine}, compiled here")


def usable_cores() -> float:
    """Return the number of cores that this process may use: minimum of affinity mask and container quota."""
    # sched_getaffinity exists on Linux only
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(allowed), *_cpu_quotas()])


def _cpu_quotas() -> Iterator[float]:
    """Yield the quotas, in cores, of this process's cgroup (v2) and its ancestors; a container is its own root."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::")), "")
    for folder in (CGROUP / own, *(CGROUP / own).parents):
        if folder.is_relative_to(CGROUP) and (limit := folder / "cpu.max").is_file():
            quota, period = limit.read_text("utf-8").split()
            if quota != "max":
                yield int(quota) / int(period)


def _ram() -> Finding:
    memory = psutil.virtual_memory()
    value = f"{gibibytes(memory.available)} available of {gibibytes(memory.total)}"
    if memory.available < MIN_RAM_BYTES:
        problem = f"jobs need about {gibibytes(MIN_RAM_BYTES)}: close other programs, or lower --memory-tokens"
        return Finding("RAM", value, problem, "error")
    return Finding("RAM", value)


def _cluster(find_cluster: Callable[[], str | None]) -> Finding:
    from longmem.errors import ClusterError

    try:
        return Finding("Ray cluster", find_cluster() or "none running; a job starts its own")
    except ClusterError as error:
        return Finding("Ray cluster", "does not answer", str(error), "warning")


def _disk(out: Path) -> Finding:
    name = "output folder"
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Finding(name, str(out), f"{folder} is a file: choose another --out", "error")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            name, str(out), f"{folder} cannot be written: change its permissions or choose another --out", "error"
        )
    free = shutil.disk_usage(folder).free
    value = f"{out}, {gibibytes(free)} free"
    if free < MIN_DISK_BYTES:
        problem = f"jobs need about {gibibytes(MIN_DISK_BYTES)}: free some space or choose --out on another disk"
        return Finding(name, value, problem, "error")
    return Finding(name, value)


def _shared_memory() -> Finding:
    total = shutil.disk_usage(SHM).total
    if total < MIN_SHM_BYTES:
        problem = "Ray then keeps its objects on disk, which is slow: start the container with --shm-size=4g"
        return Finding(str(SHM), gibibytes(total), problem, "warning")
    return Finding(str(SHM), gibibytes(total))
