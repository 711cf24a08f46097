# SPDX-License-Identifier: Apache-2.0
"""Checks before loading that a model uses every weight of its files.

transformers reports unused weights in a log line, omits some by pattern, and continues. Biases in a file that
config.json does not mention then silently change the numbers. This module builds the model that
config.json describes without memory for its weights. It compares names, shapes and types of the parameters with the
file headers, and raises at the first difference that could change a number.
"""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from longmem.backbone.families import family_of
from longmem.backbone.files import StoredTensor, one_line, read_tensor
from longmem.errors import CheckpointError

FLOATS = {"F64", "F32", "F16", "BF16"}
"""Supported types of stored weights. All others are quantised, and useless without their scales."""

SHOWN = 3
"""Number of names in a message."""

ADVICE = (
    (r"^_orig_mod\.", "they were saved from a compiled model; save those of the model itself"),
    (r"^module\.", "they were saved from a parallel wrapper; save those of the model itself"),
    (r"lora_|\.base_layer\.|^base_model\.", "they are of a PEFT adapter; save the merged model, or use --adapter"),
    (r"scale|zeros|qweight|absmax|quant|g_idx", "the weights are quantised; save a dequantised copy of the model"),
    (r"\.bias$|norm", "config.json lacks the setting that they belong to; take config.json from the model's source"),
)
"""Advice for unused weights, by a pattern of their names."""


def check_weights(source: str | Path, config: PretrainedConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Compare the tensors of a model's files with the model that its configuration describes.

    Raises CheckpointError, with the first names, for unused or missing weights, and for other shapes or types. Also
    raises it for two tensors of one parameter, and for a tied head that differs from the embedding.
    """
    _check_depth(source, config, tensors)
    model = empty_model(source, config)
    wanted = model.state_dict()
    renamed = family_of(config.model_type).renamed
    parameters = {name: parameter_of(name, wanted, model.base_model_prefix, renamed) for name in tensors}
    unused = [name for name, parameter in parameters.items() if parameter is None]
    surplus = [name for name in unused if not _is_harmless(name, tensors[name], model)]
    if surplus:
        raise CheckpointError(
            f"{source} has {len(surplus)} weights that the model of its config.json does not take, first "
            f"{sorted(surplus)[:SHOWN]}: its numbers would be those of another model; {_advice(surplus)}"
        )
    taken: dict[str, str] = {}
    for name, parameter in parameters.items():
        if parameter is not None and taken.setdefault(parameter, name) != name:
            raise CheckpointError(
                f"{source} has two weights for one parameter, {taken[parameter]} and {name}: one of them would be "
                "ignored; remove the one that does not belong to the model"
            )
    tied = dict(model.all_tied_weights_keys)
    given = {*taken, *(one for one, other in tied.items() if other in taken)}
    given |= {other for one, other in tied.items() if one in taken}
    if missing := sorted(wanted.keys() - given):
        raise CheckpointError(
            f"weights of {source} are incomplete: {len(missing)} missing, first {missing[:SHOWN]}; expected all that "
            "config.json describes (copy the *.safetensors files and config.json again)"
        )
    for parameter, name in taken.items():
        _check_form(source, name, tensors[name], tuple(wanted[parameter].shape))
    for one, other in tied.items():
        if one in taken and other in taken:
            _check_tied(source, taken[one], taken[other], tensors)


def empty_model(source: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """Return the model of a configuration without memory for its weights. Raises CheckpointError."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:
        raise CheckpointError(
            f"config.json of {source} describes no model that can be built: {one_line(error)}; take it from where the "
            "model comes from"
        ) from error
    return model


def parameter_of(
    name: str, wanted: Mapping[str, Tensor], prefix: str, renamed: tuple[tuple[str, str], ...] = ()
) -> str | None:
    """Return the name of the parameter that transformers loads from a tensor of this name, or None.

    The prefix of the model without its head may be missing or superfluous, and earlier versions used other names.
    """
    names = [name, *(new + name.removeprefix(old) for old, new in renamed if name.startswith(old))]
    for each in names:
        for parameter in (each.removeprefix(f"{prefix}."), f"{prefix}.{each}", each):
            if parameter in wanted:
                return parameter
    return None


def first_not_finite(model: nn.Module) -> str | None:
    """Return the name of the first weight with NaN or infinity, or None."""
    for name, parameter in model.named_parameters():
        low, high = parameter.aminmax() if parameter.numel() else (parameter.sum(), parameter.sum())
        if not (low.isfinite() and high.isfinite()):
            return name
    return None


def _check_depth(source: str | Path, config: PretrainedConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for another number of blocks, before the model is built: the configured one may be huge."""
    block = re.compile(rf"(?:^|\.){re.escape(family_of(config.model_type).layers)}\.(\d+)\.")
    found = {int(match.group(1)): name for name in tensors if (match := block.search(name))}
    expected = config.num_hidden_layers
    if not isinstance(expected, int) or isinstance(expected, bool) or expected < 1:
        raise CheckpointError(f"config.json of {source} must have at least 1 layer, got {expected!r}")
    if surplus := sorted(found.keys() - range(expected)):
        raise CheckpointError(
            f"{source} has weights of more layers than the {expected} of its config.json: {found[surplus[0]]}"
        )
    if len(found) < expected:
        lacking = next(layer for layer in range(expected) if layer not in found)
        sample = re.sub(r"\d+\.", f"{lacking}.", next(iter(found.values())), count=1) if found else "all of them"
        raise CheckpointError(
            f"weights of {source} are incomplete: config.json says {expected} layers, {len(found)} are there, first "
            f"missing {sample}"
        )


def _check_form(source: str | Path, name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{name} of {source} is stored as {tensor.dtype}: quantised weights are not supported, expected one of "
            f"{', '.join(sorted(FLOATS))}; save a dequantised copy of the model"
        )
    if tensor.shape != shape:
        raise CheckpointError(
            f"weights of {source} do not fit config.json: {name} is {list(tensor.shape)}, expected {list(shape)}; take "
            "both from the same model"
        )


def _check_tied(source: str | Path, one: str, other: str, tensors: Mapping[str, StoredTensor]) -> None:
    first, second = (read_tensor(tensors[name], name) for name in (one, other))
    if not torch.equal(first, second.to(first.dtype)):
        raise CheckpointError(
            f"config.json of {source} ties {one} to {other}, but they differ in its files: set tie_word_embeddings to "
            f"false if the model has a head of its own, else remove {one}"
        )


# ---- tensors that may be unused


def _is_mask(tensor: StoredTensor, name: str, _model: nn.Module) -> bool:
    """Return True for a causal mask [1, 1, positions, positions].

    A bias vector of the same name is a weight, and another mask, such as of local attention, belongs to another model.
    """
    if len(tensor.shape) != 4 or tensor.shape[:2] != (1, 1) or tensor.shape[2] != tensor.shape[3]:
        return False
    values = read_tensor(tensor, name)
    return torch.equal(values, torch.ones_like(values).tril())


def _is_scalar(tensor: StoredTensor, _name: str, _model: nn.Module) -> bool:
    return tensor.shape in ((), (1,))


def _is_positions(tensor: StoredTensor, name: str, _model: nn.Module) -> bool:
    values = read_tensor(tensor, name)
    return torch.equal(values.double().flatten(), torch.arange(values.numel(), dtype=torch.float64))


def _is_own_rotation(tensor: StoredTensor, name: str, model: nn.Module) -> bool:
    """Return True for rotary frequencies that the model computes itself; others belong to another model."""
    theirs = read_tensor(tensor, name).float()
    rotary = [module for module in model.modules() if hasattr(module, "rope_type")]
    if not rotary:
        return False
    if rotary[0].rope_type != "default":
        # files hold them before or after scaling, depending on the version that wrote them
        return True
    with torch.device("cpu"):
        own = type(rotary[0])(model.config).inv_freq
    assert isinstance(own, Tensor), f"inv_freq of {type(rotary[0]).__name__} is a {type(own).__name__}"
    # tolerance for frequencies rounded to bfloat16, or to the smallest float16
    return own.shape == theirs.shape and torch.allclose(own, theirs, rtol=1e-2, atol=1e-6)


HARMLESS: dict[str, Callable[[StoredTensor, str, nn.Module], bool]] = {
    r"(^|\.)attn\.bias$|(^|\.)attention\.bias$": _is_mask,
    r"(^|\.)attn\.masked_bias$|(^|\.)attention\.masked_bias$": _is_scalar,
    r"(^|\.)rotary_emb\.inv_freq$": _is_own_rotation,
    r"(^|\.)position_ids$": _is_positions,
    r"(^|\.)decoder\.version$": _is_scalar,
}
"""Tensors of older versions that are not weights: pattern of the name, and check of the content.

GPT-2 and GPT-NeoX: causal masks and the number for masked logits. Rotary models: frequencies. BLOOM and others:
positions 0, 1, 2, ... OPT: a version number.
"""


def _is_harmless(name: str, tensor: StoredTensor, model: nn.Module) -> bool:
    return any(re.search(pattern, name) and holds(tensor, name, model) for pattern, holds in HARMLESS.items())


def _advice(names: list[str]) -> str:
    for pattern, advice in ADVICE:
        if any(re.search(pattern, name) for name in names):
            return advice
    return "take weights and config.json from the same model"
