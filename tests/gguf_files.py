# SPDX-License-Identifier: Apache-2.0
"""GGUF files of small models, written with the `gguf` package as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig

from longmem.testing import save_small_backbone

TEXT = "In 1923 the mill's owner, Mr. Ångström, sold 4,200 bags.  They'll say he's wrong;\n\n  I don't.\t" * 8
START = "<|endoftext|>"
VOCABULARY = 384

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 96},
    "qwen2": {"hidden_size": 64, "intermediate_size": 96, "use_sliding_window": False},
    # transformers takes 128 where a file says otherwise
    "qwen3": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 128},
}
"""Shapes of the small models: rows of whole blocks of 32, which quantised tensors need."""


def trained_bpe() -> tuple[list[str], list[str]]:
    """Return the tokens, in the order of their ids, and the merges of a byte-level BPE trained on TEXT.

    It is trained without cutting at digits or contractions, so that every rule of cutting gives other ids.
    """
    tokenizer = Tokenizer(models.BPE())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_next"), spelled])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[START], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT, "''s 11 12 3 45 100 2024 I'm"], trainer)
    vocabulary = tokenizer.get_vocab()
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    # what is left of the embedding is filled up, as by the converter
    return tokens + [f"[PAD{index}]" for index in range(len(tokens), VOCABULARY)], merges


def tokenizer_metadata(pre: str | None = "gpt-2", **changes: Any) -> dict[str, Any]:
    """Return the metadata of a tokenizer; a change of None removes an entry."""
    tokens, merges = trained_bpe()
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if token == START else 5 if token.startswith("[PAD") else 1 for token in tokens],
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}


def write_gguf(
    path: Path,
    folder: Path,
    *,
    quantised: bool = False,
    tokenizer: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    left_out: tuple[str, ...] = (),
    added: dict[str, np.ndarray] | None = None,
    architecture: str | None = None,
    **shape: Any,
) -> None:
    """Write a small model to `folder`, and the same as a GGUF file.

    `settings` replace those of the architecture (None removes one); with a dot in front, they are the file's own.
    """
    import gguf

    family = architecture or "llama"
    save_small_backbone(folder, family, vocab_size=VOCABULARY, **{**SHAPES[family], **shape})
    config = AutoConfig.from_pretrained(folder)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, family)
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        **({"attention.key_length": head_dim, "attention.value_length": head_dim} if family == "qwen3" else {}),
        **({"rope.dimension_count": head_dim, "vocab_size": VOCABULARY} if family == "llama" else {}),
        **(settings or {}),
    }
    for name, value in values.items():
        if value is not None:
            _add(writer, name.removeprefix(".") if name.startswith(".") else f"{family}.{name}", value)
    for name, value in (tokenizer_metadata() if tokenizer is None else tokenizer).items():
        _add(writer, name, value)
    names = gguf.get_tensor_name_map(writer_arch(family), config.num_hidden_layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, suffix = name.rsplit(".", 1)
        target = f"{names.get_name(module)}.{suffix}"
        if target not in left_out:
            numbers = (_interleaved(tensor, name, config) if family == "llama" else tensor).numpy()
            kind = gguf.GGMLQuantizationType.Q8_0
            if quantised and numbers.ndim == 2:
                writer.add_tensor(target, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
            else:
                writer.add_tensor(target, np.ascontiguousarray(numbers))
    for name, numbers in (added or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def writer_arch(family: str) -> Any:
    import gguf

    return {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[family]


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def _interleaved(tensor: Tensor, name: str, config: Any) -> Tensor:
    """Return a projection with the two halves of each rotated head interleaved, the order of llama.cpp's Llama."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((number for part, number in heads.items() if part in name), None)
    if count is None:
        return tensor
    return tensor.reshape(count, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape).contiguous()
