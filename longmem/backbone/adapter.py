# SPDX-License-Identifier: Apache-2.0
"""PEFT adapters: merged into the backbone on request, and never ignored silently.

`peft` is optional (`pip install 'longmem[adapter]'`) and imported only here. It reports unused adapter weights in a
warning or not at all. Every weight of the file is therefore compared with the model after loading, and the merged model
with the one before merging.
"""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from longmem.backbone.files import find_file, one_line, read_json
from longmem.backbone.model_names import is_local
from longmem.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")

CHECKED_TOKENS = 16
MERGE_TOLERANCE = 1e-3
"""Tolerance relative to the largest logit: a merged adapter sums in another order than a separate one, in float32."""


def refuse_adapter_files(source: str | Path, adapter: str | Path | None) -> None:
    """Raise CheckpointError for a model folder with an adapter that was not requested."""
    found = [name for name in ADAPTER_FILES if find_file(source, name) is not None]
    if not found or (adapter is not None and is_local(source) and Path(adapter).resolve() == Path(source).resolve()):
        return
    if find_file(source, "config.json") is None:
        raise CheckpointError(
            f"{source} holds only an adapter ({found[0]}), no model: expected its base {_base_of(source)} as --model, "
            f"and --adapter {source}"
        )
    raise CheckpointError(
        f"{source} holds an adapter ({found[0]}) next to the model, which would be ignored: to merge it, add --adapter "
        f"{source}; to leave it out, move its files elsewhere"
    )


def merge_adapter(model: PreTrainedModel, adapter: str | Path) -> PreTrainedModel:
    """Merge the adapter of a folder into a float32 model in place, and return it.

    Raises ConfigError if `peft` is not installed. Raises CheckpointError for a folder without an adapter, an adapter of
    another base, missing or unused weights, and a kind that cannot be merged.
    """
    folder = Path(adapter)
    config, weights = _read_config(folder), _read_weights(folder)
    names = {name for name, _ in model.named_parameters()}
    threads = torch.get_num_threads()
    # one thread, so that the merged weights and their fingerprint do not depend on the number of threads
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # the causes of warnings are checked here
            warnings.simplefilter("ignore")
            adapted = _load(model, folder, config)
            _check_taken(folder, adapted, weights)
            before = _logits(adapted)
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
            after = _logits(merged)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot merge the adapter {folder} ({config.peft_type.value}) into {model.name_or_path}: "
            f"{one_line(error)}; expected one that was trained on this very model, of a kind that can be merged"
        ) from error
    finally:
        torch.set_num_threads(threads)
    difference = float((after - before).abs().max())
    if {name for name, _ in merged.named_parameters()} != names or not difference <= MERGE_TOLERANCE * max(
        1.0, float(before.abs().max())
    ):
        raise CheckpointError(
            f"the adapter {folder} cannot be merged: the result differs from the model with the separate adapter "
            f"(logits by {difference:.3g}), as where it changes an embedding that is tied to the head; merge it in the "
            "program that trained it, and give the merged model"
        )
    return merged


def _read_config(folder: Path) -> "PeftConfig":
    """Return the content of adapter_config.json. Raises ConfigError, CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"adapter folder not found: {folder} (expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    values = read_json(folder / ADAPTER_CONFIG)
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ConfigError(
            f"--adapter needs the package peft ({error}): pip install 'longmem[adapter]', or merge the adapter "
            "elsewhere and give the merged model"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise CheckpointError(f"cannot read {folder / ADAPTER_CONFIG}: {one_line(error)}") from error
    # peft ignores settings of a later version with a warning
    known = vars(config).keys()
    if unknown := sorted(name for name, value in values.items() if value and name not in known):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} has settings that this version of peft does not know: {unknown}; "
            "pip install --upgrade peft"
        )
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise CheckpointError(
            f"the adapter {folder} is a {config.peft_type.value}, which adds tokens instead of changing weights and "
            "cannot be merged; expected one like LORA or IA3"
        )
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"no weights in the adapter {folder}: expected {ADAPTER_WEIGHTS} (adapter_model.bin is never read); "
            "save it again with safetensors"
        )
    try:
        weights = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}; copy or download it again") from error
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{name} of {path} has values that are NaN or infinite; copy or train it again")
    return weights


def _load(model: PreTrainedModel, folder: Path, config: "PeftConfig") -> "PeftModel":
    from peft import PeftModel

    adapted: PeftModel = PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu").eval()
    return adapted


def _check_taken(folder: Path, adapted: "PeftModel", weights: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless the adapter weights of the model are exactly those of the file."""
    from peft import get_peft_model_state_dict

    # embeddings are taken from the full state dict: requested here, peft would query the hub for the base
    own: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := sorted(own.keys() - weights.keys()):
        raise CheckpointError(
            f"weights of the adapter {folder} are incomplete: {len(missing)} missing, first {missing[:3]}; copy again"
        )
    whole: dict[str, Any] = adapted.state_dict()
    lost = [name for name, weight in weights.items() if not _same(own.get(name, whole.get(name)), weight)]
    if lost:
        raise CheckpointError(
            f"the adapter {folder} has {len(lost)} weights that the model does not take, first {sorted(lost)[:3]}; "
            "expected an adapter that was trained on this very model"
        )


def _same(held: Tensor | None, weight: Tensor) -> bool:
    return held is not None and held.shape == weight.shape and torch.equal(held.float(), weight.float())


def _logits(model: "PreTrainedModel | PeftModel") -> Tensor:
    count = min(CHECKED_TOKENS, model.get_input_embeddings().weight.shape[0], _positions(model.config))
    logits: Tensor = model(input_ids=torch.arange(count)[None], use_cache=False).logits
    return logits


def _positions(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or CHECKED_TOKENS)


def _base_of(source: str | Path) -> str:
    """Return the base model that an adapter names, for a message."""
    path = find_file(source, ADAPTER_CONFIG)
    try:
        name = read_json(path).get("base_model_name_or_path") if path is not None else None
    except CheckpointError:
        name = None
    return json.dumps(name) if isinstance(name, str) else "(the model that it was trained on)"
