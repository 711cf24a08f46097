# SPDX-License-Identifier: Apache-2.0
"""The doctor on this machine, and on machines with less."""

import io
import os
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from longmem.errors import ClusterError
from longmem.model import precision
from pipelines.doctor import machine as doctor
from pipelines.doctor.machine import GIB, Finding, diagnose, render, usable_cores


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def usage(total: int, free: int) -> object:
    return lambda path: SimpleNamespace(total=total, used=total - free, free=free)


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine with free resources, so that a test's problem is the only one."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", usage(100 * GIB, 50 * GIB))
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB, available=8 * GIB))


def test_this_machine_can_run_jobs(tmp_path: Path) -> None:
    findings = diagnose(tmp_path)
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert named(findings, "torch").value == metadata.version("torch")
    assert "Ray cluster" not in [finding.name for finding in findings]


def test_problems_and_severities_go_together(tmp_path: Path) -> None:
    for finding in diagnose(tmp_path):
        assert (finding.problem is None) == (finding.severity == "ok")


def test_low_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", usage(100 * GIB, GIB))
    finding = named(diagnose(tmp_path), "output folder")
    assert finding.severity == "error"
    assert "1.0 GiB free" in finding.value
    assert "--out" in str(finding.problem)


def test_low_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=4 * GIB, available=GIB)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    assert named(diagnose(tmp_path), "RAM").severity == "error"


@pytest.mark.skipif(not doctor.SHM.is_dir(), reason="no /dev/shm on this platform")
def test_small_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", usage(GIB // 16, GIB // 16))
    finding = named(diagnose(tmp_path), "/dev/shm")
    assert finding.severity == "warning"
    assert "--shm-size" in str(finding.problem)


def test_folder_that_does_not_exist_yet_is_not_created(tmp_path: Path) -> None:
    finding = named(diagnose(tmp_path / "a" / "b"), "output folder")
    assert finding.severity == "ok"
    assert list(tmp_path.iterdir()) == []


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    assert "is a file" in str(named(diagnose(tmp_path / "file" / "out"), "output folder").problem)


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write everywhere, so the permission check itself is replaced
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be written" in str(named(diagnose(tmp_path), "output folder").problem)


def test_missing_and_old_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["no-such-package>=1.0", "numpy>=99.1", "pyarrow>=18.0", "ruff>=99; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requirements)
    findings = diagnose(tmp_path)
    assert named(findings, "no-such-package").problem == "run `pip install 'no-such-package>=1.0'`"
    assert "at least 99.1" in str(named(findings, "numpy").problem)
    assert named(findings, "pyarrow").severity == "ok"
    assert "ruff" not in [finding.name for finding in findings]


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", missing)
    assert named(diagnose(tmp_path), "longmem").severity == "error"


def test_torch_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert named(diagnose(tmp_path), "torch import").severity == "error"


@pytest.mark.parametrize(("cores", "threads", "advice"), [(4.0, 16, "--threads 4"), (0.5, 2, "--threads 1")])
def test_more_threads_than_a_container_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: float, threads: int, advice: str
) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: cores)
    monkeypatch.setattr(doctor, "num_cores", lambda: threads)
    finding = named(diagnose(tmp_path), "CPU")
    assert finding.severity == "warning"
    assert str(finding.problem).endswith(advice)


def test_threads_of_the_environment_are_no_problem_because_jobs_set_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8.0)
    monkeypatch.setattr(doctor, "num_cores", lambda: 8)
    assert named(diagnose(tmp_path), "CPU").severity == "ok"


def test_container_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n", "utf-8")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    assert usable_cores() == pytest.approx(0.5)
    (tmp_path / "cpu.max").write_text("max 100000\n", "utf-8")
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("speedup", "advised"), [(0.1, False), (1.2, False), (4.8, True)])
def test_bfloat16_is_advised_where_it_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, advised: bool
) -> None:
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: speedup)
    finding = named(diagnose(tmp_path), "bfloat16")
    assert finding.severity == "ok", "jobs compute in float32 unless they are told otherwise"
    assert ("--dtype auto" in str(finding.advice)) == advised


def test_cluster_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    findings = diagnose(tmp_path, find_cluster=lambda: "10.0.0.1:6379")
    assert named(findings, "Ray cluster").value == "10.0.0.1:6379"
    assert named(findings, "RAY_ADDRESS").value == "10.0.0.1:6379"
    assert "none running" in named(diagnose(tmp_path, find_cluster=lambda: None), "Ray cluster").value


def test_a_cluster_that_does_not_answer_is_a_warning(tmp_path: Path) -> None:
    def find_cluster() -> str | None:
        raise ClusterError("nothing answers at '10.0.0.1:6379'")

    finding = named(diagnose(tmp_path, find_cluster=find_cluster), "Ray cluster")
    assert finding.severity == "warning"
    assert "10.0.0.1:6379" in str(finding.problem)


def test_render() -> None:
    console = Console(file=io.StringIO(), width=80)
    findings = [
        Finding("RAM", "8 GiB", advice="use it"),
        Finding("CPU", "2 cores", "too many threads", "warning"),
        Finding("out", "[red]x[/]", "no space", "error"),
    ]
    render(findings, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✓ ok" in output
    assert "use it" in output
    assert "! slow" in output
    assert "✗ bad" in output
    assert "[red]x[/]" in output
    assert "1 found that stop a job, 1 that slow it down." in output
    console = Console(file=io.StringIO(), width=80)
    render(findings[:1], console)
    assert "Jobs can run here." in console.file.getvalue()  # type: ignore[attr-defined]
