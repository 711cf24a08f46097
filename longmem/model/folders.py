# SPDX-License-Identifier: Apache-2.0
"""Folders of saved LongMem models, of the hub and of this package, and their `config.json`. Does not import torch."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from longmem.backbone.files import find_file, read_json
from longmem.backbone.model_names import CONFIG_FILE
from longmem.errors import CheckpointError

BACKBONE_FOLDER = "backbone"
MODEL_TYPE = "longmem"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""Name of a repository of the hub."""

FITTED_MODELS = {"longmem-smollm2-135m": Path(__file__).parents[1] / "fitted" / "smollm2-135m"}
"""Checkpoints of this package by the name that `--model` takes, on backbones of the package index. A local folder of
this name comes first."""


def checkpoint_folder(source: str | Path) -> Path:
    """Return the folder that a source means: a local one, one of `FITTED_MODELS`, or the copy of a LongMem of the hub.

    Anything else is returned as a path. Raises CheckpointError for a name `USER/NAME` if the hub cannot be reached.
    """
    if Path(source).exists():
        return Path(source)
    if str(source) in FITTED_MODELS:
        return FITTED_MODELS[str(source)]
    if isinstance(source, str) and HUB_ID.fullmatch(source) and _is_on_hub(source):
        return _snapshot(source)
    return Path(source)


@cache
def _is_on_hub(name: str) -> bool:
    """Return True if the hub has a LongMem of this name, not a plain backbone."""
    path = find_file(name, CONFIG_FILE)
    return path is not None and read_json(path).get("model_type") == MODEL_TYPE


@cache
def _snapshot(name: str) -> Path:
    """Return the downloaded folder of a LongMem, the same one for all its parts. Raises CheckpointError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"no model folder {name}, and no such model on the hub: {error}") from error


def is_checkpoint(source: str | Path) -> bool:
    """Return True if a folder, or a name of the hub, holds a saved LongMem (not, for example, a plain backbone)."""
    folder = checkpoint_folder(source)
    return (folder / CONFIG_FILE).is_file() and read_config(folder).get("model_type") == MODEL_TYPE


def backbone_of(source: str | Path) -> str | Path:
    """Return the backbone of a local checkpoint: its folder, or the name that it gives."""
    folder = checkpoint_folder(source)
    named: str | None = read_config(folder).get("backbone")
    return folder / BACKBONE_FOLDER if named is None else named


def backbone_name(source: str | Path) -> str | None:
    """Return the name of a backbone inside a saved LongMem, whose folder has no name of its own; None for other
    folders."""
    path = Path(source)
    if path.name == BACKBONE_FOLDER and is_checkpoint(path.parent):
        return str(read_config(path.parent)["name"])
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's `config.json`. Raises CheckpointError."""
    path = folder / CONFIG_FILE
    description = read_json(path)
    settings = description.get("longmem")
    if isinstance(settings, dict) and "one_pass" in settings:
        raise CheckpointError(
            f"{path}: expected the settings of a model, got one_pass, which is given when a document is scored "
            "(`longmem perplexity --one-pass`); remove it"
        )
    return description


def local_folder(source: str | Path) -> Path:
    """Return the existing folder of a source, downloaded if necessary. Raises CheckpointError."""
    folder = checkpoint_folder(source)
    return folder if folder.is_dir() else _snapshot(str(source))
