"""Opening a Hugging Face causal language model: a folder or a hub id, safetensors only, frozen."""

import json
import re
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from longmem.backbone.families import family_of
from longmem.backbone.fast_linear import use_fast_linear
from longmem.config import Dtype
from longmem.dtypes import TORCH_DTYPES, to_array
from longmem.errors import CheckpointError, ConfigError


def load_config(source: str | Path) -> PretrainedConfig:
    """The model's configuration. Raises CheckpointError (not a model), UnknownFamilyError."""
    if _looks_local(source) and not Path(source).is_dir():
        raise CheckpointError(f"model folder not found: {source} (expected config.json and *.safetensors)")
    try:
        config = AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        model_type = _unknown_model_type(source)
        if model_type is not None:
            family_of(model_type)
        raise CheckpointError(f"cannot read a model configuration from {source}: {error}") from error
    family_of(config.model_type)
    return config


def load_causal_lm(source: str | Path, dtype: Dtype) -> PreTrainedModel:
    """The model in eval mode, without gradients.

    Raises CheckpointError when weights are missing, corrupt, of other shapes than the configuration says, or not in
    safetensors (pickle is never read), UnknownFamilyError for an unsupported architecture.
    """
    if dtype == "float16":
        raise ConfigError("compute dtype must be float32 or bfloat16: float16 overflows in attention on a CPU")
    config = load_config(source)
    hf_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=TORCH_DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            # reported below with their names, where transformers would only say that there are some
            ignore_mismatched_sizes=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot load the weights of {source}: {error}; expected complete *.safetensors files "
            "(copy or download them again)"
        ) from error
    # A tied head is not in the file and not reported; anything else that is missing would be random numbers.
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"weights of {source} are incomplete: {len(missing)} missing, first {missing[:3]}")
    if report["mismatched_keys"]:
        raise CheckpointError(f"weights of {source} do not fit config.json: {sorted(report['mismatched_keys'])[:3]}")
    if surplus := sorted(key for key in report["unexpected_keys"] if _is_beyond(key, config)):
        raise CheckpointError(
            f"{source} has weights of more layers than the {config.num_hidden_layers} of its config.json: {surplus[:3]}"
        )
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    use_fast_linear(frozen)
    return frozen


def _is_beyond(key: str, config: PretrainedConfig) -> bool:
    """Whether a weight belongs to a block that the configuration does not have."""
    layers = family_of(config.model_type).layers
    found = re.search(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.", key)
    return found is not None and int(found.group(1)) >= config.num_hidden_layers


def _looks_local(source: str | Path) -> bool:
    """A hub id is `name` or `owner/name`; everything else is a path."""
    text = str(source)
    return isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1


def _unknown_model_type(source: str | Path) -> str | None:
    """`model_type` of a local folder whose architecture transformers itself does not know."""
    path = Path(source) / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    model_type = values.get("model_type") if isinstance(values, dict) else None
    return model_type if isinstance(model_type, str) else None


def hash_weights(model: torch.nn.Module, rounded_to: torch.dtype = torch.float32) -> str:
    """XXH3-128 over every parameter's name, shape and value, in name order; as float32, so that it is the same
    whatever type holds the same numbers."""
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(to_array(parameter.to(rounded_to).float()).data)
    return digest.hexdigest()
