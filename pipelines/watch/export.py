# SPDX-License-Identifier: Apache-2.0
"""Export of dashboard, alert rules and scrape configuration into a user's folder."""

import json
from importlib.resources import files
from pathlib import Path
from string import Template

import longmem
from longmem.errors import OutputError
from pipelines.job.output import write_text
from pipelines.watch.dashboard import dashboard

MARKER = "Written by `longmem monitoring export`"
"""Marker of files that a newer export may replace."""

TEMPLATES = ("prometheus.yml", "longmem-alerts.yml", "README.md")
DASHBOARD = "dashboards/longmem.json"


def monitoring_files(folder: Path, ray_folder: str) -> dict[str, str]:
    """Return the contents of all files by relative path."""
    marker = f"{MARKER} {longmem.__version__}; copy it before you change it."
    templates = files("pipelines.watch") / "monitoring"
    # `safe_substitute`: alert annotations contain other dollar signs
    values = {"marker": marker, "ray_folder": ray_folder, "folder": str(folder.absolute())}
    written = {
        name: Template((templates / name).read_text(encoding="utf-8")).safe_substitute(values) for name in TEMPLATES
    }
    return {**written, DASHBOARD: json.dumps(dashboard(marker), indent=2) + "\n"}


def export_monitoring(folder: Path, ray_folder: str) -> list[Path]:
    """Write all files and return their paths.

    Raises OutputError, before any write, if one of them exists and was not written by an export.
    """
    contents = {folder / name: text for name, text in monitoring_files(folder, ray_folder).items()}
    try:
        for path in contents:
            if path.exists() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
                raise OutputError(f"{path} was not written by longmem; choose another folder, or move it away")
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text, advice="choose another folder")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error}; choose another folder") from error
    return list(contents)
