"""Where each Hugging Face family keeps its blocks, its projections and its norm: the only model names in the project.

To add a family, add one entry to `FAMILIES`. What it must say is checked by `tests/unit/backbone/test_families.py`
on a small randomly initialised model of the real architecture.

Position-free queries, keys and values are the outputs of the projections (after a q/k-norm where there is one, before
any rotation). They are read by hooks on the projections, and the memory's answer enters in front of the output
projection. So one mechanism serves families with the attention-function registry and those without (BLOOM).
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from jaxtyping import Float
from torch import Tensor, nn

from longmem.errors import UnknownFamilyError

Query = Float[Tensor, "batch tokens heads head_dim"]
KeyOrValue = Float[Tensor, "batch tokens kv_heads head_dim"]


@dataclass(frozen=True)
class AttentionShape:
    """Numbers of heads and their width."""

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


@dataclass(frozen=True)
class Family:
    """One architecture. Names are attribute paths: `stack` from the causal LM, `attention` from a block, the rest
    from the stack or the attention module."""

    stack: str
    """Module that runs embeddings, blocks and final norm, and returns `last_hidden_state`."""
    layers: str = "layers"
    norm: str = "norm"
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Submodules of the attention whose outputs hold query, key and value."""
    split: Callable[[list[Tensor], AttentionShape], tuple[Query, KeyOrValue, KeyOrValue]] = _separate
    output: str = "o_proj"
    scale: str = "scaling"
    """Attribute of the attention module that multiplies query·key."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Beginnings of weight names in the files of earlier transformers versions, and what they are today."""

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
    ),
    "gpt2": Family(
        stack="transformer",
        layers="h",
        norm="ln_f",
        attention="attn",
        projections=("c_attn",),
        split=_concatenated,
        output="c_proj",
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
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "opt": Family(stack="model.decoder", norm="final_layer_norm", output="out_proj"),
    "qwen2": _LLAMA_LIKE,
    "qwen3": Family(stack="model", projections=("q_norm", "k_norm", "v_proj")),
}


def family_of(model_type: str) -> Family:
    """The entry for a `config.model_type`. Raises UnknownFamilyError listing the supported ones."""
    if model_type not in FAMILIES:
        raise UnknownFamilyError(
            f"backbone family {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "A new family is one entry in longmem/backbone/families.py"
        )
    return FAMILIES[model_type]


def _module(root: nn.Module, path: str) -> nn.Module:
    module = attrgetter(path)(root)
    assert isinstance(module, nn.Module), f"{type(root).__name__}.{path} is a {type(module).__name__}, not a module"
    return module
