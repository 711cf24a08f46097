# SPDX-License-Identifier: Apache-2.0
"""Files of a model folder or hub model: the weight files, and the tensors in their headers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from longmem.backbone.model_names import CONFIG_FILE, is_local
from longmem.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_POINTER = b"version https://git-lfs.github.com/spec/"
MESSAGE_CHARACTERS = 400
"""Longest message of another library in an error."""


@dataclass(frozen=True)
class StoredTensor:
    """Entry of one tensor in a safetensors header."""

    file: Path
    dtype: str
    """Type name of safetensors: F32, BF16, F8_E4M3, ..."""
    shape: tuple[int, ...]


def one_line(error: BaseException) -> str:
    """Return another library's message on one line, preceded by its type if the message is a single word."""
    text = " ".join(str(error).split())
    if " " not in text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}…"


def find_file(source: str | Path, name: str) -> Path | None:
    """Return one file of a folder or hub id, downloaded if necessary; None if it does not exist.

    Raises CheckpointError when the hub has no such model or cannot be reached.
    """
    if is_local(source):
        path = Path(source) / name
        return path if path.is_file() else None
    # only now: they take a second, and most models are local
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from transformers.utils import cached_file

    try:
        # a model has its configuration: without it the hub is unreachable, of which transformers says nothing otherwise
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=name == CONFIG_FILE)
    except Exception as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise CheckpointError(
                f"cannot reach the Hugging Face hub, and {source} is not in its cache; check the network, or give a "
                "local folder"
            ) from error
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise CheckpointError(
            f"no model folder {source}, and no such model on the hub: {one_line(error)}; check the name"
        ) from error
    return None if found is None else Path(found)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model. Raises CheckpointError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; expected a model folder") from error
    except (ValueError, RecursionError) as error:
        if _is_pointer(path):
            raise CheckpointError(_pointer_message(path)) from error
        raise CheckpointError(f"{path} is not valid JSON: {one_line(error)}; copy or download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}; copy or download it again")
    return values


def weight_files(source: str | Path, named: object = None) -> list[Path]:
    """Return the safetensors files that transformers reads for this model.

    `named` is `transformers_weights` of its configuration, which would replace the usual name. Raises CheckpointError
    for it, for missing weights, and for further weight files that would not be read.
    """
    single, index = find_file(source, WEIGHTS_FILE), find_file(source, INDEX_FILE)
    if named is not None:
        raise CheckpointError(
            f"config.json of {source} names its weights itself (transformers_weights: {named!r}); "
            f"expected {WEIGHTS_FILE} or {INDEX_FILE}: rename the file, and take the entry out"
        )
    if single is None and index is None:
        raise CheckpointError(
            f"no weights in {source}: expected {WEIGHTS_FILE}, or {INDEX_FILE} and the files it names; "
            "other formats (*.bin) are not read, save the model again with safetensors; of *.gguf, give the file itself"
        )
    names = {WEIGHTS_FILE} if index is None else set(_weight_map(index).values())
    if single is not None and names != {WEIGHTS_FILE}:
        raise CheckpointError(
            f"{source} holds both {WEIGHTS_FILE} and {INDEX_FILE}, which names other files: one of the two would "
            "be ignored; remove the one that you do not want"
        )
    if is_local(source) and (left := sorted(_shards(Path(source)) - names)):
        raise CheckpointError(
            f"{source} holds weights that would not be read, first {left[:3]}: expected only those that "
            f"{WEIGHTS_FILE if index is None else INDEX_FILE} names; remove the others, or copy the model again"
        )
    files = []
    for name in sorted(names):
        path = find_file(source, name)
        if path is None:
            raise CheckpointError(
                f"weights of {source} are incomplete: {INDEX_FILE} names {name}, which is not there; copy the "
                "*.safetensors files again"
            )
        files.append(path)
    return files


def read_headers(source: str | Path, files: list[Path]) -> dict[str, StoredTensor]:
    """Return every tensor of the files by its name.

    Raises CheckpointError for damaged files, for a name in two files, and for an index that does not match its files.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in _header(path).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in two weight files of {source}, {tensors[name].file.name} and {path.name}: expected "
                    "it once; copy the model again"
                )
            tensors[name] = tensor
    index = find_file(source, INDEX_FILE)
    if index is not None:
        listed = _weight_map(index)
        found = {name: tensor.file.name for name, tensor in tensors.items()}
        if wrong := sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name)):
            first = wrong[0]
            raise CheckpointError(
                f"{index} does not describe the files beside it: {len(wrong)} tensors, first {first} in "
                f"{listed.get(first, 'no file')} by the index and {found.get(first, 'no file')} in truth; copy the "
                "model again"
            )
    return tensors


def read_tensor(tensor: StoredTensor, name: str) -> "Tensor":
    """Return one tensor listed by `read_headers`. Raises CheckpointError."""
    try:
        with safe_open(tensor.file, framework="pt") as file:
            values: Tensor = file.get_tensor(name)
            return values
    except Exception as error:
        raise CheckpointError(f"cannot read {name} of {tensor.file}: {one_line(error)}; copy it again") from error


def _header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {
                name: StoredTensor(path, each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()
            }
    except Exception as error:
        if _is_pointer(path):
            raise CheckpointError(_pointer_message(path)) from error
        raise CheckpointError(
            f"cannot load the weights of {path.parent}: {path.name} is damaged ({one_line(error)}); expected complete "
            "*.safetensors files (copy or download them again)"
        ) from error


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor in an index."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(
            f"{index} must hold weight_map, the file of each tensor, got {listed!r:.100}; copy or download it again"
        )
    return listed


def _shards(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name)}


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _pointer_message(path: Path) -> str:
    return (
        f"{path} is a Git LFS pointer, not the file itself (expected a *.safetensors or *.json file with its content): "
        "run `git lfs pull` in its folder, or download it again"
    )
