"""Settings of one LongMem model, stored as `config.json` beside its weights."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from longmem.errors import ConfigError

Dtype = Literal["float32", "float16", "bfloat16"]
KvDtype = Literal["float32", "float16", "bfloat16", "int8"]
QuerySource = Literal["side", "key_space"]
KeyForm = Literal["raw", "centred", "unit"]
ValueForm = Literal["same", "next"]
Retrieval = Literal["per_head", "joint"]
SpecialTokens = Literal["parse", "text"]

REPEAT_MEMORY_TOKENS = 2**24 - 1
"""Longest memory whose repeats can be found: places share 64 bits with hashes."""

CHOICES: dict[str, tuple[str, ...]] = {
    "kv_dtype": get_args(KvDtype),
    "query": get_args(QuerySource),
    "keys": get_args(KeyForm),
    "values": get_args(ValueForm),
    "retrieval": get_args(Retrieval),
    "special_tokens": get_args(SpecialTokens),
}
"""Fields that take one of a few names."""

PAPER_FORM: dict[str, Any] = {
    "query": "side",
    "keys": "raw",
    "values": "same",
    "retrieval": "per_head",
    "copy_head": False,
    "chunk_tokens": 4,
}
"""How the paper reads: the reference that the other ways are measured against."""


@dataclass(frozen=True, kw_only=True)
class LongMemConfig:
    """Shape of the memory and of the SideNet; the backbone's own shape comes from the backbone.

    Raises ConfigError for a value that cannot work, naming the field and what was expected.
    """

    memory_layer: int | None = None
    """Backbone layer (0-based) whose keys and values are stored. None: three quarters up, see `resolve_layer`."""
    layer_reduction: int = 2
    """r: the SideNet has one layer for every r backbone layers."""
    segment_tokens: int = 1024
    """Local context: tokens that one backbone forward reads together."""
    chunk_tokens: int = 1
    """Tokens that are found and read together; their mean key is the chunk's key. The paper has 4; 1 measured best."""
    memory_tokens: int = 65_536
    """Past tokens that a segment may read."""
    top_k: int = 64
    """K: retrieved tokens per token and head (`top_k / chunk_tokens` chunks)."""
    kv_dtype: KvDtype = "float16"
    """Format in which keys and values are stored (`longmem.kv_format`)."""
    query: QuerySource = "key_space"
    """What searches: `side`, the SideNet's own query projection (paper), or `key_space`, a learned map of the reading
    token's own key, the identity at the start: keys find keys of like context where queries of a layer need not."""
    keys: KeyForm = "unit"
    """What is searched: keys as they are (paper), less the mean key of each head, or that scaled to length one."""
    values: ValueForm = "next"
    """What an attended position gives: its own value (paper), or that of the token which followed it."""
    retrieval: Retrieval = "joint"
    """One search for each head (paper), or one search over the keys of all heads together."""
    copy_head: bool = True
    """Mix the tokens that followed the retrieved positions into the output distribution."""
    copy_match_tokens: int = 4
    """Longest run of equal tokens, ending at a retrieved position and at the reading token, that the copy head tells
    apart; with 0, what was retrieved is weighed without a look at token ids."""
    copy_repeats: int = 8
    """Places that the copy head also copies from because the last tokens stand there again
    (`longmem.retrieval.repeats`): the newest so many for each length of run; 0: only what keys retrieved."""
    fusion: bool = True
    """Mix attention over the retrieved values into the memory layer (paper)."""
    special_tokens: SpecialTokens = "parse"
    """Meaning of a special token that a text spells (`<|endoftext|>`): the token itself, as in Hugging Face's
    tokenizers, or its characters as text."""
    scale_start: float = 0.0
    """a_i before training: 0 makes the untrained SideNet its backbone, the paper has 1 throughout."""
    gate_start: float = 0.0
    """b_h before training: the memory's share of the fusion is sigmoid(b_h)."""
    trained_steps: int = 0
    """Optimiser steps the SideNet has seen; 0 with scale_start 0 means that its layers still equal the backbone."""

    def __post_init__(self) -> None:
        for name in ("layer_reduction", "segment_tokens", "chunk_tokens", "top_k"):
            _require_int(name, getattr(self, name), minimum=1)
        for name in ("memory_tokens", "trained_steps", "copy_match_tokens", "copy_repeats"):
            _require_int(name, getattr(self, name), minimum=0)
        if self.memory_layer is not None:
            _require_int("memory_layer", self.memory_layer, minimum=0)
        for name, allowed in CHOICES.items():
            if (chosen := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {chosen!r}")
        for name in ("copy_head", "fusion"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}")
        for name in ("scale_start", "gate_start"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ConfigError(f"{name} must be a finite number, got {value!r}")
        if self.copy_head and self.copy_repeats and self.memory_tokens > REPEAT_MEMORY_TOKENS:
            raise ConfigError(
                f"memory_tokens must be at most {REPEAT_MEMORY_TOKENS} where repeats are copied, got "
                f"{self.memory_tokens}; or set copy_repeats=0"
            )
        if self.query == "key_space" and self.keys == "raw":
            raise ConfigError(
                "query=key_space needs keys=centred or keys=unit, got keys=raw: raw keys share a large common "
                "direction, so every key would find the same few places"
            )
        for name in ("segment_tokens", "memory_tokens", "top_k"):
            value = getattr(self, name)
            if value % self.chunk_tokens:
                lower = value - value % self.chunk_tokens
                raise ConfigError(
                    f"{name} must be a multiple of chunk_tokens={self.chunk_tokens}, got {value}; "
                    f"try {lower or self.chunk_tokens} or {lower + self.chunk_tokens}, or another chunk size"
                )

    @property
    def num_slots(self) -> int:
        """Chunks retrieved per token and head."""
        return self.top_k // self.chunk_tokens

    def resolve_layer(self, num_layers: int) -> int:
        """The memory layer for a backbone of `num_layers`: as configured, else 0.75·L rounded down to one that a
        SideNet layer is copied from (`m % r == r - 1`), as in the paper (24 layers → 17).

        Raises ConfigError when the layers cannot be divided by r or the layer is not one of those.
        """
        r = self.layer_reduction
        if num_layers % r:
            raise ConfigError(f"layer_reduction={r} must divide the backbone's {num_layers} layers; choose a divisor")
        copied = range(r - 1, num_layers, r)
        if self.memory_layer is None:
            return max((m for m in copied if m <= num_layers * 3 // 4), default=copied[0])
        if self.memory_layer not in copied:
            raise ConfigError(
                f"memory_layer must be one of {list(copied)} (a layer that the SideNet copies, m % {r} == {r - 1}), "
                f"got {self.memory_layer}"
            )
        return self.memory_layer

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LongMemConfig":
        """Read back `vars(config)`. Raises ConfigError for unknown names, listing the known ones."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown settings {unknown}; known are {sorted(known)}")
        return cls(**values)


def _require_int(name: str, value: object, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
