# SPDX-License-Identifier: Apache-2.0
"""Loads Hugging Face causal language models from a folder or a hub id, safetensors only, frozen.

Every exception of transformers becomes a CheckpointError: a damaged or hostile model folder can fail anywhere in the
library, which documents no closed set of exceptions.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from longmem.backbone.adapter import merge_adapter, refuse_adapter_files
from longmem.backbone.converted import model_folder
from longmem.backbone.families import FAMILIES, family_of
from longmem.backbone.fast.attention import use_fast_attention
from longmem.backbone.fast.elementwise import use_fast_elementwise
from longmem.backbone.fast.linear import use_fast_linear
from longmem.backbone.fast.rotation import use_fast_rotation
from longmem.backbone.files import StoredTensor, find_file, one_line, read_headers, read_json, weight_files
from longmem.backbone.model_names import CONFIG_FILE, check_source
from longmem.backbone.weight_check import check_weights, first_not_finite
from longmem.config import Dtype
from longmem.dtypes import TORCH_DTYPES, to_array
from longmem.errors import CheckpointError, ConfigError

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
MAX_LAYERS = 10_000


def load_config(source: str | Path, adapter: str | Path | None = None) -> PretrainedConfig:
    """Return the model's configuration; `adapter` is the folder of an adapter to be merged.

    Raises CheckpointError (not a model, quantised, an adapter that was not requested, custom code), UnknownFamilyError.
    """
    source = model_folder(source)
    check_source(source)
    refuse_adapter_files(source, adapter)
    path = find_file(source, CONFIG_FILE)
    if path is None:
        raise CheckpointError(f"no {CONFIG_FILE} in {source}: expected a model folder with it and *.safetensors")
    values = read_json(path)
    refuse_code(source, CONFIG_FILE, values)
    model_type = values.get("model_type")
    # without it, transformers guesses from the name of the folder
    if not isinstance(model_type, str):
        raise CheckpointError(f'{CONFIG_FILE} of {source} must hold model_type, such as "llama", got {model_type!r}')
    family_of(model_type)
    _refuse_quantised(source, values)
    for name in LAYER_COUNTS:
        # transformers allocates lists of this length before it validates anything
        if isinstance(count := values.get(name), int) and count > MAX_LAYERS:
            raise CheckpointError(f"{name} in {CONFIG_FILE} of {source} must be at most {MAX_LAYERS}, got {count}")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"cannot read a model configuration from {source}: {one_line(error)}") from error
    family_of(config.model_type).check_config(config)
    return config


def max_tokens_of(config: PretrainedConfig) -> int | None:
    """Return the longest context of a model's position encoding in tokens; None without a limit (ALiBi)."""
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None or config.model_type == "bloom" else int(limit)


def load_causal_lm(source: str | Path, dtype: Dtype, adapter: str | Path | None = None) -> PreTrainedModel:
    """Return the model in eval mode without gradients; an adapter is merged in float32, then rounded to `dtype`.

    Raises CheckpointError when weights are missing, corrupt, not finite, not in safetensors (pickle is never read), or
    do not match the configuration. Raises UnknownFamilyError for an unsupported architecture.
    """
    if dtype == "float16":
        raise ConfigError("compute dtype must be float32 or bfloat16: float16 overflows in attention on a CPU")
    source = model_folder(source)
    config = load_config(source, adapter)
    files = weight_files(source, getattr(config, "transformers_weights", None))
    tensors = read_headers(source, files)
    check_weights(source, config, tensors)
    computed = TORCH_DTYPES[dtype]
    loaded = torch.float32 if adapter is not None else computed
    model = _load(source, config, loaded, adapter)
    _leave_files(model, tensors, loaded)
    if adapter is not None:
        _check_finite(source, model)
        model = merge_adapter(model, adapter).to(computed)
    _check_finite(source if adapter is None else adapter, model)
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    use_fast_linear(frozen)
    use_fast_attention(frozen)
    use_fast_elementwise(frozen)
    use_fast_rotation(frozen)
    return frozen


def _load(
    source: str | Path, config: PretrainedConfig, dtype: torch.dtype, adapter: str | Path | None
) -> PreTrainedModel:
    hf_logging.disable_progress_bar()
    # if peft is installed, transformers silently adds an adapter of the model's folder, unmerged; this makes it search
    # in another subfolder
    elsewhere = {} if adapter is None else {"adapter_kwargs": {"subfolder": ".no-adapter"}}
    try:
        model: PreTrainedModel
        model, report = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **elsewhere,
        )
    except Exception as error:
        raise CheckpointError(
            f"cannot load the weights of {source}: {one_line(error)}; expected complete *.safetensors files "
            "(copy or download them again)"
        ) from error
    # a tied head is not in the file and not reported; any other missing weight would be random
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"weights of {source} are incomplete: {len(missing)} missing, first {missing[:3]}")
    return model


def _leave_files(model: PreTrainedModel, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Copy weights that were loaded as `dtype` if most of their files have another type.

    Weights of the requested type stay in their mapped file, whose pages processes share. Where others were converted,
    the rest would keep the whole file in memory: 0.5 GiB for 61 norms of SmolLM2-135M.
    """
    name = {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
    stored = sum(prod(tensor.shape) for tensor in tensors.values())
    mapped = sum(prod(tensor.shape) for tensor in tensors.values() if tensor.dtype == name)
    if 0 < mapped < stored / 2:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def refuse_code(source: str | Path, file: str, values: dict[str, Any]) -> None:
    """Raise CheckpointError for a model folder that requires custom code.

    This holds even if transformers has a class for the family: the custom code may compute something else, so falling
    back to that class could change every number.
    """
    if named := values.get("auto_map"):
        raise CheckpointError(
            f"{file} of {source} names code of its own (auto_map: {named!r:.200}), which is never run: expected one "
            f"of {', '.join(sorted(FAMILIES))} as transformers has it; if it is one, take auto_map out of {file}"
        )


def _refuse_quantised(source: str | Path, values: dict[str, Any]) -> None:
    for name in ("quantization_config", "compression_config"):
        if (settings := values.get(name)) is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise CheckpointError(
                f"{source} has quantised weights ({name} of config.json: {method or 'no method named'}), which are "
                "not supported: expected float32, float16 or bfloat16; give the model before quantisation, or save a "
                "dequantised copy"
            )


def _check_finite(source: str | Path, model: PreTrainedModel) -> None:
    name = first_not_finite(model)
    if name is not None:
        raise CheckpointError(
            f"{name} of {source} has values that are NaN or infinite; expected finite weights: copy or train the model "
            "again"
        )


def hash_weights(model: torch.nn.Module, rounded_to: torch.dtype = torch.float32) -> str:
    """Return the XXH3-128 of every parameter's name, shape and value, in name order.

    Values are hashed as float32, so that the hash depends on the numbers and not on their type.
    """
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(to_array(parameter.to(rounded_to).float()).data)
    return digest.hexdigest()
