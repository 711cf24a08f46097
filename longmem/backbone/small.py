# SPDX-License-Identifier: Apache-2.0
"""Small, randomly initialised models of each supported architecture, saved as Hugging Face folders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from longmem.backbone.families import family_of

_VOCABULARY = 257

_MODERN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "gemma3_text": {
        **_MODERN,
        "head_dim": 12,
        "query_pre_attn_scalar": 20,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "granite": {
        **_MODERN,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.5,
    },
    "llama": _MODERN,
    "mistral": {**_MODERN, "sliding_window": 24},
    "olmo2": _MODERN,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 16,
    },
    "phi3": {**_MODERN, "sliding_window": 24},
    "qwen2": {**_MODERN, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    "qwen3": {**_MODERN, "head_dim": 16},
}
"""Configurations by family, with edge cases: grouped heads, sliding windows shorter than a segment, OPT's projected
embeddings, a head width that is not hidden/heads."""


def save_small_backbone(folder: Path, family: str, *, seed: int = 0, **overrides: Any) -> None:
    """Write a random model of `family` and a byte-level tokenizer (256 bytes and one text separator) to `folder`."""
    family_of(family)
    values = {"vocab_size": _VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
    config = AutoConfig.for_model(family, **{**values, **SMALL_CONFIGS[family], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # transformers' small initial weights make predictions uniform; larger ones expose errors
                parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per UTF-8 byte. Id 256 separates texts; no class adds its name again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)} | {"<|endoftext|>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
