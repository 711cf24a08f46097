# SPDX-License-Identifier: Apache-2.0
"""Module names of blocks, projections and norm of each Hugging Face family; the only model names in the project.

To add a family, add one entry to `FAMILIES`. `tests/unit/backbone/test_families.py` checks it on a small randomly
initialised model of the real architecture.

Queries, keys and values before position encoding are the outputs of the projections (after a q/k-norm if there is one,
before any rotation). Hooks on the projections read them, and the memory's output is mixed in before the output
projection. This also supports families without transformers' attention-function registry (BLOOM).
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from longmem.errors import UnknownFamilyError

Query = Float[Tensor, "batch tokens heads head_dim"]
KeyOrValue = Float[Tensor, "batch tokens kv_heads head_dim"]


@dataclass(frozen=True)
class AttentionShape:
    """Numbers of query and key-value heads, and their width."""

    heads: int
    kv_heads: int
    head_dim: int


def _separate(outputs: list[Tensor], shape: AttentionShape) -> tuple[Query, KeyOrValue, KeyOrValue]:
    query, key, value = outputs
    batch, tokens = value.shape[:2]
    return (
        query.reshape(batch, tokens, shape.heads, shape.head_dim),
        key.reshape(batch, tokens, shape.kv_heads, shape.head_dim),
        value.reshape(batch, tokens, shape.kv_heads, shape.head_dim),
    )


def _concatenated(outputs: list[Tensor], shape: AttentionShape) -> tuple[Query, KeyOrValue, KeyOrValue]:
    return _separate(list(outputs[0].chunk(3, dim=-1)), shape)


def _interleaved(outputs: list[Tensor], shape: AttentionShape) -> tuple[Query, KeyOrValue, KeyOrValue]:
    batch, tokens = outputs[0].shape[:2]
    query, key, value = outputs[0].reshape(batch, tokens, shape.heads, 3, shape.head_dim).unbind(dim=3)
    return query, key, value


def _fused(outputs: list[Tensor], shape: AttentionShape) -> tuple[Query, KeyOrValue, KeyOrValue]:
    widths = [shape.head_dim * heads for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    return _separate(list(outputs[0].split(widths, dim=-1)), shape)


def _normed_by_head(outputs: list[Tensor], shape: AttentionShape) -> tuple[Query, KeyOrValue, KeyOrValue]:
    query, key, value = outputs  # the norms run after the axes of heads and tokens are swapped
    return _separate([query.transpose(1, 2), key.transpose(1, 2), value], shape)


@dataclass(frozen=True)
class Family:
    """Module names of one architecture, as attribute paths.

    `stack` starts at the causal LM, `attention` at a block, the others at the stack or the attention module.
    """

    stack: str
    """Module that runs embeddings, blocks and final norm, and returns `last_hidden_state`."""
    layers: str = "layers"
    norm: str = "norm"
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Submodules of the attention whose outputs contain query, key and value."""
    split: Callable[[list[Tensor], AttentionShape], tuple[Query, KeyOrValue, KeyOrValue]] = _separate
    output: str = "o_proj"
    scale: str = "scaling"
    """Attribute of the attention module that multiplies query·key."""
    rotary: str | None = "rotary_emb"
    """Submodule of the stack that makes the tables of rotary positions; None for other kinds of positions."""
    keys_have_positions: bool = False
    """True where positions are added to the embeddings: keys and values then cannot be moved to other positions."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Prefixes of weight names in files of earlier transformers versions, with their present form."""
    logits_divisor: str | None = None
    """Field of the configuration that divides the logits."""
    unset: tuple[str, ...] = ()
    """Fields of the configuration that must be empty, because what they switch on is not implemented."""

    def stack_of(self, causal_lm: nn.Module) -> nn.Module:
        return _module(causal_lm, self.stack)

    def layers_of(self, stack: nn.Module) -> nn.ModuleList:
        layers = getattr(stack, self.layers)
        assert isinstance(layers, nn.ModuleList), f"{self.stack}.{self.layers} is a {type(layers).__name__}"
        return layers

    def attention_of(self, layer: nn.Module) -> nn.Module:
        return _module(layer, self.attention)

    def projections_of(self, attention: nn.Module) -> list[nn.Module]:
        return [_module(attention, name) for name in self.projections]

    def output_of(self, attention: nn.Module) -> nn.Module:
        return _module(attention, self.output)

    def scale_of(self, attention: nn.Module) -> float:
        return float(getattr(attention, self.scale))

    def logits_divisor_of(self, config: Any) -> float:
        return 1.0 if self.logits_divisor is None else float(getattr(config, self.logits_divisor))

    def check_config(self, config: Any) -> None:
        """Raise UnknownFamilyError where the configuration switches on what is not implemented."""
        for name in self.unset:
            if value := getattr(config, name, None):
                raise UnknownFamilyError(
                    f"backbone family {config.model_type!r} is supported without {name}, got {name}={value!r}; give "
                    "a model without it"
                )


_LLAMA_LIKE = Family(stack="model")

FAMILIES: dict[str, Family] = {
    "bloom": Family(
        stack="transformer",
        layers="h",
        norm="ln_f",
        attention="self_attention",
        projections=("query_key_value",),
        split=_interleaved,
        output="dense",
        scale="inv_norm_factor",
        rotary=None,
    ),
    # logit caps are Gemma 2's: no published Gemma 3 has them, nor a mask that looks ahead, except embedding models
    "gemma3_text": Family(
        stack="model",
        projections=("q_norm", "k_norm", "v_proj"),
        split=_normed_by_head,
        unset=("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"),
    ),
    "gpt2": Family(
        stack="transformer",
        layers="h",
        norm="ln_f",
        attention="attn",
        projections=("c_attn",),
        split=_concatenated,
        output="c_proj",
        rotary=None,
        keys_have_positions=True,
    ),
    "gpt_neox": Family(
        stack="gpt_neox",
        norm="final_layer_norm",
        attention="attention",
        projections=("query_key_value",),
        split=_interleaved,
        output="dense",
        renamed=(("embed_out.", "lm_head."),),
    ),
    "granite": Family(stack="model", logits_divisor="logits_scaling"),
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "olmo2": Family(stack="model", projections=("q_norm", "k_norm", "v_proj")),
    "opt": Family(
        stack="model.decoder", norm="final_layer_norm", output="out_proj", rotary=None, keys_have_positions=True
    ),
    "phi3": Family(stack="model", projections=("qkv_proj",), split=_fused),
    "qwen2": _LLAMA_LIKE,
    "qwen3": Family(stack="model", projections=("q_norm", "k_norm", "v_proj")),
}


def family_of(model_type: str) -> Family:
    """Return the family of a `config.model_type`. Raises UnknownFamilyError with the supported ones."""
    if model_type not in FAMILIES:
        raise UnknownFamilyError(
            f"backbone family {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "docs/architecture.md says how to add one"
        )
    return FAMILIES[model_type]


def _module(root: nn.Module, path: str) -> nn.Module:
    module = attrgetter(path)(root)
    assert isinstance(module, nn.Module), f"{type(root).__name__}.{path} is a {type(module).__name__}, not a module"
    return module
