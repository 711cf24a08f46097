# SPDX-License-Identifier: Apache-2.0
"""A LongMem checkpoint on disk: `config.json`, `sidenet.safetensors`, and a `backbone/` folder. Never pickle.

A checkpoint without a `backbone/` names its backbone in `config.json`. `folders` finds the folder of a source.

All digests in `config.json` are checked at load: safetensors itself does not detect a flipped bit.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from longmem.backbone.adapter import refuse_adapter_files
from longmem.backbone.backbone import Backbone
from longmem.backbone.loading import hash_weights
from longmem.backbone.model_names import CONFIG_FILE
from longmem.backbone.tokenizer import Tokenizer
from longmem.config import Dtype, LongMemConfig
from longmem.dtypes import TORCH_DTYPES
from longmem.errors import CheckpointError, ConfigError
from longmem.model.folders import (
    BACKBONE_FOLDER,
    MODEL_TYPE,
    backbone_of,
    is_checkpoint,
    local_folder,
    read_config,
)
from longmem.sidenet.cache_reader import CacheReader
from longmem.sidenet.reading_model import ReadingModel
from longmem.sidenet.sidenet import SideNet
from longmem.version import __version__

SIDENET_FILE = "sidenet.safetensors"
DESCRIPTION_FIELDS = {
    "name": str,
    "backbone_digest": str,
    "sidenet_digest": str,
    "tokenizer_digest": str,
    "dtype": str,
    "longmem": dict,
}
"""Required keys of config.json, in addition to `model_type` and the version that wrote it."""


def new_reading_model(backbone: Backbone, tokenizer: Tokenizer, config: LongMemConfig) -> ReadingModel:
    """Return an untrained reading model of the kind that the config names. Raises ConfigError."""
    if config.reads_all_layers:
        return CacheReader(backbone, config, tokenizer.start_token)
    return SideNet(backbone, config)


def save_parts(
    folder: Path, backbone: Backbone, sidenet: ReadingModel, tokenizer: Tokenizer, config: LongMemConfig
) -> None:
    """Write all parts; config.json last, so that a folder with a config.json is complete."""
    if (folder / CONFIG_FILE).exists() and not is_checkpoint(folder):
        raise CheckpointError(f"{folder} holds another model (its config.json is not LongMem's); choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: _compact(tensor) for name, tensor in sidenet.state_dict().items()}, folder / SIDENET_FILE)
    _save_backbone(folder / BACKBONE_FOLDER, backbone, tokenizer)
    description = {
        "model_type": MODEL_TYPE,
        "name": backbone.name,
        "longmem_version": __version__,
        "backbone_digest": backbone.digest(),
        "sidenet_digest": hash_weights(sidenet),
        "tokenizer_digest": tokenizer.digest(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        # one pass is how a document is scored, and no property of the model
        "longmem": {name: value for name, value in vars(config).items() if name != "one_pass"},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_parts(
    source: str | Path, dtype: Dtype, device: str, settings: dict[str, Any]
) -> tuple[Backbone, ReadingModel, Tokenizer, LongMemConfig]:
    """Open a folder or hub id. Raises CheckpointError naming the missing or damaged file, ConfigError."""
    folder = local_folder(source)
    description = read_config(folder)
    if description.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{folder} is not a LongMem checkpoint (model_type {description.get('model_type')!r}); "
            "for a plain backbone use LongMem.from_backbone"
        )
    _check_description(folder / CONFIG_FILE, description)
    refuse_adapter_files(folder, None)
    saved_settings = settings_of(description)
    refuse_other_layers(str(source), saved_settings, settings)
    config = LongMemConfig.from_dict({**saved_settings, **settings})
    own = backbone_of(folder)
    backbone = Backbone.load(own, dtype, name=description["name"])
    tokenizer = Tokenizer(own, backbone.vocab_size, config.special_tokens)
    _check_digest(Path(own) / "tokenizer.json", tokenizer.digest(), description["tokenizer_digest"])
    backbone.model.to(device)
    sidenet = new_reading_model(backbone, tokenizer, replace(config, copy_repeats=saved_settings["copy_repeats"]))
    _load_sidenet(folder / SIDENET_FILE, sidenet)
    # float32 represents every saved dtype exactly, so rounding it back restores the digested bytes
    if dtype in ("float32", description["dtype"]):
        saved = TORCH_DTYPES[description["dtype"]]
        _check_digest(Path(own), hash_weights(backbone.model, rounded_to=saved), description["backbone_digest"])
        _check_digest(folder / SIDENET_FILE, hash_weights(sidenet), description["sidenet_digest"])
    if sidenet.config != config:
        sidenet = _with_or_without_repeats(sidenet, backbone, tokenizer, config)
    return backbone, sidenet, tokenizer, config


def refuse_other_layers(source: str, saved: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ConfigError where a checkpoint is asked to read other layers than those it was saved for."""
    before = saved.get("memory_layers", LongMemConfig.memory_layers)
    if (asked := settings.get("memory_layers", before)) != before:
        raise ConfigError(
            f"{source} was saved to read memory_layers={before}, got {asked}; for that, give its backbone as the "
            f"model: {backbone_of(source)}"
        )


def _with_or_without_repeats(
    saved: ReadingModel, backbone: Backbone, tokenizer: Tokenizer, config: LongMemConfig
) -> ReadingModel:
    """Add initial weights of repeats to the saved SideNet, or remove them; every other weight is unchanged."""
    sidenet = new_reading_model(backbone, tokenizer, config)
    own = sidenet.state_dict()
    sidenet.load_state_dict(own | {name: weight for name, weight in saved.state_dict().items() if name in own})
    return sidenet


def _load_sidenet(path: Path, sidenet: ReadingModel) -> None:
    if not path.is_file():
        raise CheckpointError(f"missing {path}: expected {CONFIG_FILE}, {SIDENET_FILE} and {BACKBONE_FOLDER}/")
    try:
        weights: dict[str, Tensor] = load_file(path)
        sidenet.load_state_dict(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy or download it again") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the backbone and config.json next to it: {error}") from error


def _compact(tensor: Tensor) -> Tensor:
    """Return the tensor in half the bytes where that is lossless, as for layers copied from a bfloat16 backbone."""
    halved = tensor.to(torch.bfloat16)
    return (halved if torch.equal(halved.to(tensor.dtype), tensor) else tensor).contiguous()


def _save_backbone(folder: Path, backbone: Backbone, tokenizer: Tokenizer) -> None:
    """Copy the backbone's original files where they are available, so that bits and size are preserved."""
    if backbone.folder is not None:
        if backbone.folder.resolve() == folder.resolve():
            return
        folder.mkdir(exist_ok=True)
        for file in sorted(backbone.folder.iterdir()):
            if file.suffix in {".json", ".safetensors", ".txt", ".model"}:
                shutil.copyfile(file, folder / file.name)
    else:
        backbone.model.save_pretrained(str(folder))
        tokenizer.save(folder)


def _check_digest(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise CheckpointError(f"{path} is not what was saved: expected digest {expected}, got {found}; copy it again")


def settings_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return the saved fields of LongMemConfig."""
    # a model saved before repeats existed has no weights for them
    return {"copy_repeats": 0, **description["longmem"]}


def _check_description(path: Path, description: dict[str, Any]) -> None:
    for name, kind in DESCRIPTION_FIELDS.items():
        if not isinstance(description.get(name), kind):
            raise CheckpointError(
                f"{path} needs {name!r} as a {kind.__name__}, got {description.get(name)!r}; "
                "copy it again, or save the model with this version of longmem"
            )
