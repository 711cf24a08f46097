# SPDX-License-Identifier: Apache-2.0
"""Shapes of well-known models, for speeds that do not depend on trained weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a model without weights."""

    name: str
    family: str
    sizes: dict[str, int]
    """Fields of the family's configuration."""


GPT2_MEDIUM = Shape(
    "GPT-2-medium's shape",
    "gpt2",
    {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50_257},
)
LLAMA_1B = Shape(
    "Llama-1B's shape",
    "llama",
    {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "vocab_size": 128_256,
    },
)
"""Shape of Llama 3.2."""

SHAPES = {"gpt2-medium": GPT2_MEDIUM, "llama-1b": LLAMA_1B}
