# SPDX-License-Identifier: Apache-2.0
"""Common header of `summary.json`: everything needed to cite, check or repeat a result."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from platform import machine, python_version
from typing import TYPE_CHECKING, Any

import longmem

if TYPE_CHECKING:
    # loads torch
    from longmem.model.source import ModelDescription

LIBRARIES = ("torch", "transformers", "ray", "lancedb", "faiss-cpu", "pyarrow", "numpy")


def about(command: str, model: "ModelDescription", executor: dict[str, Any], resumed: bool) -> dict[str, Any]:
    """Return command, model, settings, executor and versions that produced a result."""
    return {
        "longmem_version": longmem.__version__,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": resumed,
        "model": {
            "name": model.name,
            "family": model.family,
            "trained": model.trained,
            "num_parameters": model.num_parameters,
            "memory_layer": model.settings["memory_layer"],
            "fingerprint": {**asdict(model.fingerprint), "sidenet": model.sidenet},
        },
        "settings": model.settings,
        "executor": executor,
        "versions": {"python": f"{python_version()} ({machine()})", **{name: version(name) for name in LIBRARIES}},
    }


def model_facts(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a job's model that every report shows, by name."""
    model = summary["model"]
    sidenet = "trained SideNet" if model["trained"] else "untrained SideNet"
    return {
        "name": model["name"],
        "family": model["family"],
        "reading model": "cache reader" if _reads_all_layers(summary["settings"]) else sidenet,
        "parameters": model["num_parameters"],
        "memory layer": model["memory_layer"],
    }


def side_names(summary: dict[str, Any]) -> tuple[str, str]:
    """Return the names of LongMem and of its backbone in tables and charts; a job whose memory is off reads none."""
    if summary["settings"].get("memory_tokens", 1):
        return "with memory", "without memory"
    return "LongMem, memory off", "backbone alone"


def has_baseline(summary: dict[str, Any]) -> bool:
    """Return whether the backbone alone scored the segments of a perplexity job; in one pass it did not."""
    return summary["nats"]["backbone"] is not None


def why_no_baseline(summary: dict[str, Any]) -> str:
    """Return why a job in one pass has no perplexity of the backbone alone, and how to get one."""
    said = "The backbone alone did not run in one pass"
    again = "score again with --no-memory and use longmem compare"
    if "window" in summary:
        return f"{said}: for a perplexity of the same segments without memory, {again}."
    return f"{said}: for a perplexity without memory, give --window N, or {again}."


def reads_memory(summary: dict[str, Any]) -> bool:
    """Return whether a model without trained layers read a memory: by its copy head, or at every layer."""
    settings = summary["settings"]
    return bool(settings["memory_tokens"] and (settings["copy_head"] or _reads_all_layers(settings)))


def why_no_change(summary: dict[str, Any]) -> str:
    """Return why a model without trained layers, which read no memory, should equal its backbone."""
    if _reads_all_layers(summary["settings"]):
        return "Without memory, the model is its backbone"
    return "The SideNet is untrained, and an untrained SideNet equals its backbone"


def cause_of_change(summary: dict[str, Any]) -> str:
    """Return where the change of perplexity comes from, for a model without trained layers that read a memory."""
    settings = summary["settings"]
    fitted = "fitted" if settings.get("trained_steps") else "untrained"
    if not _reads_all_layers(settings):
        return f"The SideNet is untrained: the change comes from its {fitted} copy head alone."
    if not settings["copy_head"]:
        return "Nothing is trained: the frozen backbone reads the memory at every layer."
    return f"The frozen backbone reads the memory at every layer, and its {fitted} copy head copies from it."


def _reads_all_layers(settings: dict[str, Any]) -> bool:
    # the summary of an earlier version has no such setting
    return settings.get("memory_layers") == "all"
