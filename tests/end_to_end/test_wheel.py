# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source archive: what they hold, and that the wheel runs a job without the repository."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import longmem

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
PACKAGES = ("longmem", "actors", "pipelines")
DATA = {
    "marker of types": "*/py.typed",
    "templates": "pipelines/**/*.j2",
    "styles": "pipelines/**/*.css",
    "tasks": "pipelines/**/*.toml",
    "monitoring": "pipelines/watch/monitoring/*",
    "tasks of the harness": "longmem/evaluation/**/*.yaml",
    "C sources": "longmem/**/*.c",
    "C headers": "longmem/**/*.h",
    "reference model": "longmem/reference_model/**/*",
}
"""Kinds of files that are no Python, by patterns below the root; a wheel needs each of them."""
BUILD_S = 120


def expected_files() -> set[str]:
    """Return every file of the packages that git tracks, or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the wheel and the source archive, without the network."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(out)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel], [source] = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


def test_the_wheel_holds_the_packages_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        [info] = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode("utf-8"))
        licence = wheel.read(f"{info}/licenses/LICENSE")
    assert {name for name in names if not name.startswith(f"{info}/")} == expected_files()
    for kind, pattern in DATA.items():
        held = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern) if path.is_file()}
        held = {name for name in held if name.startswith(PACKAGES)}
        assert held, f"{kind}: has its place moved?"
        assert held <= names, kind
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert metadata["Version"] == longmem.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_builds_the_same_wheel(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as source:
        names = {name.split("/", 1)[1] for name in source.getnames() if "/" in name}
    assert expected_files() <= names
    assert {"LICENSE", "CITATION.cff", "README.md", "pyproject.toml", "tests/end_to_end/test_wheel.py"} <= names
    assert not {name for name in names if name.startswith((".venv", ".ci", ".git/"))}


def test_the_wheel_runs_a_job_without_the_repository(archives: tuple[Path, Path], tmp_path: Path) -> None:
    home, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    # the libraries of this interpreter; its own .pth files, such as that of an editable install, are not followed
    libraries = sysconfig.get_paths()["purelib"]
    [packages] = (home / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(archives[0])], check=True, timeout=BUILD_S)
    # an environment without PYTHONPATH, in a folder that is not the repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    look = "import json, sys, longmem as a, actors as b, pipelines as c; "
    look += "print(json.dumps([sys.path, a.__file__, b.__file__, c.__file__]))"
    path, *files = json.loads(run(str(python), "-c", look))
    assert all(Path(file).is_relative_to(packages) for file in files)
    assert not [entry for entry in path if Path(entry or work).resolve() in (ROOT, ROOT.parent)]
    (work / "text.txt").write_text("Call me Ishmael. Some years ago, never mind how long. " * 4, encoding="utf-8")
    run(str(home / "bin" / "longmem"), "perplexity", "text.txt", "--address", "none", "--threads", "1", "--out", "out")
    summary = json.loads((work / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["counts"]["documents"], summary["counts"]["failed_documents"]) == (1, 0)
    assert (work / "out" / "report.html").stat().st_size > 0


def test_the_citation_names_this_version_and_the_paper() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {longmem.__version__}\n" in text
    assert "arXiv:2306.07174" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nlicense: {project['license']}\n" in text
