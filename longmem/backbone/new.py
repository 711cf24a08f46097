# SPDX-License-Identifier: Apache-2.0
"""New backbones for pretraining: a Llama of a given shape, its tokenizer files, and its saved folder."""

import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from longmem.errors import ConfigError, OutputError


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Shape of a Llama without grouped heads, with tied embeddings. Raises ConfigError."""

    layers: int
    hidden_size: int
    heads: int
    head_dim: int
    intermediate_size: int
    """Width of the SwiGLU."""
    vocab_size: int
    max_positions: int
    """Longest context in tokens."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, because positions rotate pairs, got {self.head_dim}")


def new_llama(shape: LlamaShape, start_token: int, seed: int) -> PreTrainedModel:
    """Return a model with random float32 weights, which depend only on shape and seed."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=start_token,
        eos_token_id=start_token,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = LlamaForCausalLM(config)
    return model


def save_tokenizer(tokenizer: Tokenizer, start_token: str, max_positions: int, folder: Path) -> None:
    """Write a Hugging Face tokenizer atomically, with `start_token` as beginning- and end-of-text token.

    Raises OutputError.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start_token, eos_token=start_token, model_max_length=max_positions
    )
    scratch = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        fast.save_pretrained(str(scratch))
        scratch.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}; repair that and run again with --resume") from error


def save_backbone(model: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> None:
    """Write a Hugging Face folder atomically, with weights rounded to bfloat16. `model` is not changed.

    Raises OutputError.
    """
    hf_logging.disable_progress_bar()
    scratch = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(tokenizer_folder, scratch)
        deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(str(scratch))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {folder}: {error}; repair that and run again with --resume") from error
