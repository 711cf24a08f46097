# SPDX-License-Identifier: Apache-2.0
"""Compute types that this machine has chosen for models, remembered so that each is measured once.

A choice is a small file in the user's cache folder. Its name is the digest of processor, torch, and model: for a local
model the size and modification time of each file. Removing the file makes the next job measure again.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import xxhash

from longmem.backbone.converted import model_folder
from longmem.config import Dtype
from longmem.model.folders import backbone_of, checkpoint_folder, is_checkpoint
from longmem.model.source import ModelSource
from longmem.system.processor import CPU_INFO

if TYPE_CHECKING:
    from longmem.model.precision import DtypeChoice

logger = logging.getLogger(__name__)

SMALL_BYTES = 64 * 2**20
"""Weight files of a model that computes in float32 without a measurement: its products are too small to gain, and its
numbers stay the same on every machine."""


@dataclass(frozen=True)
class RememberedChoice:
    """Choice for one model on this machine."""

    model: str
    dtype: Dtype
    reason: str
    """Measurements that decided, as one sentence."""


def settled_dtype(
    source: ModelSource,
    choose: "Callable[[ModelSource], DtypeChoice]",
    on_measure: Callable[[], None] = lambda: None,
) -> RememberedChoice | None:
    """Return the choice for a model on this machine, measured where none is remembered; None for a small model.

    `on_measure` is called before a measurement, which takes minutes. Raises ModelError and its kinds, ConfigError,
    NumericError.
    """
    folders = _folders(source)
    weights = _weight_bytes(folders[-1])
    if 0 < weights < SMALL_BYTES:
        return None
    if weights == 0:
        # a hub id, or a model that does not exist, which this tells
        source.open_tokenizer()
    path = _cache() / f"{_digest(source, folders)}.json"
    if (known := _read(path)) is not None:
        return known
    on_measure()
    choice = choose(replace(source, search="auto"))
    made = RememberedChoice(source.source, choice.dtype, str(choice))
    _write(path, made)
    return made


def remembered_choices() -> Iterator[RememberedChoice]:
    """Yield every choice in the cache folder, also those of models that have changed since."""
    for path in sorted(_cache().glob("*.json")):
        if (known := _read(path)) is not None:
            yield known


def _cache() -> Path:
    return platformdirs.user_cache_path("longmem") / "compute-types"


def _folders(source: ModelSource) -> list[Path]:
    """Return the local folders of a model, that of the backbone last. A hub id gives a folder that does not exist."""
    if is_checkpoint(source.source):
        return [checkpoint_folder(source.source), Path(model_folder(backbone_of(source.source)))]
    return [Path(model_folder(source.source))]


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _digest(source: ModelSource, folders: list[Path]) -> str:
    adapter = [] if source.adapter is None else [Path(source.adapter)]
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for folder in (*folders, *adapter)
        for path in sorted(folder.glob("*"))
        if path.is_file()
    ]
    processor = CPU_INFO.read_text("utf-8", "replace") if CPU_INFO.is_file() else ""
    # lines that do not change with the load
    kind = sorted({line for line in processor.splitlines() if line.startswith(("model name", "flags"))})
    identity = (source.source, source.settings, files, kind, version("torch"), source.device)
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())


def _read(path: Path) -> RememberedChoice | None:
    try:
        values = json.loads(path.read_text("utf-8"))
        return RememberedChoice(values["model"], values["dtype"], values["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): the compute type is measured again", path, error)
        return None


def _write(path: Path, made: RememberedChoice) -> None:
    """Write the file at once as a whole: several jobs may do so."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(vars(made)), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next job measures again", path, error)
