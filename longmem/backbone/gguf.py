# SPDX-License-Identifier: Apache-2.0
"""GGUF files, converted into model folders with plain weights.

`gguf` is optional (`pip install 'longmem[gguf]'`) and imported only here. transformers reads the weights and
dequantises them. It takes the default of a setting that the file lacks, and ignores settings and tensors that it does
not know, for example scaled rotary frequencies. Every setting is therefore compared with the configuration that it
made, and every number of the file must be in the model.
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GgufConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from longmem.backbone.files import one_line
from longmem.backbone.gguf_tokenizer import gguf_tokenizer
from longmem.errors import CheckpointError, ConfigError

MAGIC = b"GGUF"
REQUIRED_PACKAGES = ("gguf", "accelerate")

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Architectures whose conversion is tested here against the model that the file was written from."""

OFF: dict[str, Any] = {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0}
"""Settings that are accepted with this value only, which says that the model does without."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to an existing folder: configuration, weights and tokenizer.

    Weights keep every bit: a tensor is stored in half precision only where that loses nothing. Needs memory for
    all weights in float32.

    Raises:
        ConfigError: The extra is not installed.
        CheckpointError: The file is not one, is damaged, or its architecture or tokenizer is not supported.
    """
    _require_packages(file)
    metadata, num_numbers = _read(file)
    _check_architecture(file, metadata)
    tokenizer = gguf_tokenizer(file, metadata)
    model = _load(file)
    _check_settings(file, metadata, model.config)
    held = sum(parameter.numel() for parameter in model.parameters())
    if held != num_numbers:
        raise CheckpointError(
            f"{file} has {num_numbers:,} weights, but the model of its settings takes {held:,}: something that it "
            "computes with would be left out, such as rotary frequencies (rope_freqs) or biases; give a folder of the "
            "same model with *.safetensors"
        )
    for parameter in model.parameters():
        parameter.data = _compact(parameter.data)
    try:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        raise CheckpointError(
            f"cannot write the model converted from {file} to {folder}: {one_line(error)}; free some space there"
        ) from error


def _require_packages(file: Path) -> None:
    if missing := [name for name in REQUIRED_PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"reading {file.name} needs the package {missing[0]}, which is not installed: run "
            "pip install 'longmem[gguf]'"
        )


def _read(file: Path) -> tuple[dict[str, Any], int]:
    """Return the metadata of a file, and how many numbers its tensors hold."""
    import gguf

    try:
        with file.open("rb") as opened:
            start = opened.read(len(MAGIC))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}; expected a GGUF file") from error
    if start != MAGIC:
        raise CheckpointError(
            f"{file} is not a GGUF file: expected it to begin with {MAGIC!r}, got {start!r}; download it again"
        )
    try:
        reader = gguf.GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        return metadata, sum(int(tensor.n_elements) for tensor in reader.tensors)
    except Exception as error:
        raise CheckpointError(
            f"{file} is damaged or incomplete ({one_line(error)}); expected a whole GGUF file: download it again"
        ) from error


def _check_architecture(file: Path, metadata: Mapping[str, Any]) -> None:
    if (parts := metadata.get("split.count", 1)) > 1:
        raise CheckpointError(
            f"{file} is one of {parts} parts of a model; expected one file: join them with llama-gguf-split --merge"
        )
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file} has the architecture {architecture!r}, which is not supported as GGUF; supported are "
            f"{', '.join(ARCHITECTURES)}. Other families are read from a folder with config.json and *.safetensors"
        )


def _load(file: Path) -> PreTrainedModel:
    hf_logging.disable_progress_bar()
    # in a folder of its own, because transformers also reads other files of the folder, such as those of an adapter
    with TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(file.absolute())
        try:
            model: PreTrainedModel
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file="model.gguf",
                # without it the weights are the same, but transformers does not save them
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except Exception as error:
            raise CheckpointError(
                f"cannot load the weights of {file}: {one_line(error)}; expected a whole GGUF file (download it again)"
            ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"weights of {file} are incomplete: {len(missing)} missing, first {missing[:3]}")
    return model


def _check_settings(file: Path, metadata: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Raise CheckpointError for a setting of the file that the configuration lacks or contradicts."""
    prefix = f"{metadata['general.architecture']}."
    given = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    heads, hidden = given.get("attention.head_count"), given.get("embedding_length")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    natural = hidden // heads if isinstance(heads, int) and isinstance(hidden, int) and heads else None
    # default: that of the format
    expected = {
        "context_length": (None, config.max_position_embeddings),
        "embedding_length": (None, config.hidden_size),
        "block_count": (None, config.num_hidden_layers),
        "feed_forward_length": (None, config.intermediate_size),
        "attention.head_count": (None, config.num_attention_heads),
        "attention.head_count_kv": (heads, config.num_key_value_heads),
        "attention.layer_norm_rms_epsilon": (None, config.rms_norm_eps),
        "attention.key_length": (natural, head_dim),
        "attention.value_length": (natural, head_dim),
        "rope.dimension_count": (given.get("attention.key_length", natural), head_dim),
        "rope.freq_base": (10_000.0, config.rope_parameters["rope_theta"]),
        "vocab_size": (config.vocab_size, config.vocab_size),
    }
    for name, value in given.items():
        if name not in expected and (name not in OFF or value != OFF[name]):
            raise CheckpointError(
                f"{file} sets {prefix}{name}={value!r:.100}, which is not supported: its numbers would be those of "
                "another model; give a folder of the same model with config.json and *.safetensors"
            )
    for name, (default, made) in expected.items():
        value = given.get(name, default)
        if not isinstance(value, int | float) or not math.isclose(value, made, rel_tol=1e-6):
            raise CheckpointError(
                f"{file} sets {prefix}{name}={value!r:.100}, but transformers makes a model with {made!r} of it; "
                "give a folder of the same model with config.json and *.safetensors"
            )


def _compact(tensor: Tensor) -> Tensor:
    """Return the tensor in half the bytes where that is lossless, as for files in float16 or bfloat16."""
    halves = (tensor.to(half) for half in (torch.bfloat16, torch.float16))
    return next((half for half in halves if torch.equal(half.to(tensor.dtype), tensor)), tensor)
