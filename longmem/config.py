# SPDX-License-Identifier: Apache-2.0
"""Settings of one LongMem model, stored as `config.json` with its weights."""

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
MemoryLayers = Literal["one", "all"]
BlockChoice = Literal["keys", "overlap", "both", "random"]
DemonstrationChoice = Literal["idf", "keys", "values", "random"]
"""Similarity by which whole demonstrations are chosen (`longmem.sidenet.demonstration_choice`)."""

REPEAT_MEMORY_TOKENS = 2**24 - 1
"""Largest memory whose repeats can be found: token indices share 64 bits with hashes."""

LONGEST_SEGMENT = 4096
"""Longest segment that is a default, in tokens: longer ones cost more per token and more memory in flight."""

CHOICES: dict[str, tuple[str, ...]] = {
    "kv_dtype": get_args(KvDtype),
    "query": get_args(QuerySource),
    "keys": get_args(KeyForm),
    "values": get_args(ValueForm),
    "retrieval": get_args(Retrieval),
    "special_tokens": get_args(SpecialTokens),
    "memory_layers": get_args(MemoryLayers),
    "block_choice": get_args(BlockChoice),
}
"""Allowed values of the fields that name a variant."""

PAPER_FORM: dict[str, Any] = {
    "query": "side",
    "keys": "raw",
    "values": "same",
    "retrieval": "per_head",
    "copy_head": False,
    "chunk_tokens": 4,
}
"""Settings of the paper's reader, the reference for comparisons of other variants."""


@dataclass(frozen=True, kw_only=True)
class LongMemConfig:
    """Settings of memory and SideNet; the backbone's shape comes from the backbone.

    Raises ConfigError for an invalid value; the message names the field and the expected values.
    """

    memory_layers: MemoryLayers = "one"
    """Layers whose keys and values are stored. With `one`, the SideNet reads them (paper). With `all`, the frozen
    backbone reads the memory at every layer as its KV cache (`longmem.sidenet.cache_reader`), and needs no training."""
    memory_layer: int | None = None
    """Backbone layer (0-based) whose keys are searched, and the only one stored where `memory_layers` is `one`. None:
    at 3/4 of the depth, or at 5/6 where all layers are stored, see `resolve_layer`."""
    layer_reduction: int = 2
    """Number r of backbone layers per SideNet layer."""
    delta_rank: int = 0
    """Rank of the trained change of each matrix of the SideNet's layers (LoRA). With 0, whole matrices are trained and
    saved (paper)."""
    segment_tokens: int = 1024
    """Tokens of the local context, which one backbone forward processes together."""
    chunk_tokens: int = 1
    """Tokens retrieved together; their mean key is the key of the chunk. The paper uses 4; 1 measured best."""
    memory_tokens: int = 65_536
    """Past tokens that a segment may read."""
    top_k: int = 64
    """Number K of retrieved tokens per token and head (`top_k / chunk_tokens` chunks)."""
    kv_dtype: KvDtype = "float16"
    """Storage format of keys and values (`longmem.kv_format`)."""
    query: QuerySource = "key_space"
    """Query of the search: `side`, the SideNet's query projection (paper), or `key_space`, a learned linear map of the
    reading token's own key, initialised as the identity. Keys retrieve keys of similar contexts, which a layer's
    queries need not do."""
    keys: KeyForm = "unit"
    """Keys of the search: unchanged (`raw`, paper), minus each head's mean key (`centred`), or also scaled to unit
    length (`unit`)."""
    values: ValueForm = "next"
    """Value of an attended position: its own (`same`, paper), or that of the following token (`next`)."""
    retrieval: Retrieval = "joint"
    """Search per head (`per_head`, paper), or one search over the concatenated keys of all heads (`joint`)."""
    copy_head: bool = True
    """True to mix the tokens after the retrieved positions into the output distribution."""
    copy_match_tokens: int = 4
    """Longest run of equal tokens, ending at a retrieved position and at the reading token, that the copy head
    distinguishes. With 0, its weights do not depend on token ids."""
    copy_repeats: int = 8
    """Number of repeats of the last tokens per run length, newest first, that the copy head also copies from
    (`longmem.retrieval.repeats`). With 0, it copies only from retrieved positions."""
    fusion: bool = True
    """True to mix attention over the retrieved values into the memory layer (paper)."""
    special_tokens: SpecialTokens = "parse"
    """Treatment of special tokens in a text (`<|endoftext|>`): `parse` them, as Hugging Face's tokenizers do, or treat
    their characters as `text`."""
    near_tokens: int = 2048
    """Newest memory tokens that every layer reads, where `memory_layers` is `all`."""
    read_blocks: int = 16
    """Number of older blocks of `block_tokens` that every layer reads too, chosen by `longmem.sidenet.block_choice`."""
    block_tokens: int = 64
    """Tokens of one such block."""
    block_choice: BlockChoice = "keys"
    """Choice of blocks: by similar `keys` of the memory layer, by `overlap` of tokens weighted by their idf, by `both`,
    or at `random` (a control)."""
    one_pass: bool = False
    """True to encode a segment behind the memory that it reads, where `memory_layers` is `all`: one forward a token
    instead of two. Stored keys and values then depend on the memory, and the segments of a document are encoded in
    order. The backbone alone does not run. Only documents are scored so, and models are saved without this setting."""
    sink: bool | None = None
    """True to put the start token in front of every segment that does not begin with it, as an attention sink. None:
    where `memory_layers` is `all`."""
    scale_start: float = 0.0
    """Initial scale a_i. With 0 the untrained SideNet equals its backbone; the paper uses a constant 1."""
    gate_start: float = 0.0
    """Initial gate b_h: the memory's share of the fusion is sigmoid(b_h)."""
    trained_steps: int = 0
    """Number of optimiser steps of the SideNet. With 0 and scale_start 0, its layers equal the backbone."""

    def __post_init__(self) -> None:
        for name in ("layer_reduction", "segment_tokens", "chunk_tokens", "top_k", "block_tokens"):
            _require_int(name, getattr(self, name), minimum=1)
        for name in (
            "memory_tokens",
            "delta_rank",
            "trained_steps",
            "copy_match_tokens",
            "copy_repeats",
            "near_tokens",
            "read_blocks",
        ):
            _require_int(name, getattr(self, name), minimum=0)
        if self.memory_layer is not None:
            _require_int("memory_layer", self.memory_layer, minimum=0)
        for name, allowed in CHOICES.items():
            if (chosen := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {chosen!r}")
        for name in ("copy_head", "fusion", "one_pass"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}")
        if self.sink not in (None, True, False):
            raise ConfigError(f"sink must be true, false or null, got {self.sink!r}")
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
                "direction, so every key would find the same few positions"
            )
        if self.reads_all_layers and (self.query != "key_space" or self.chunk_tokens != 1):
            raise ConfigError(
                "memory_layers=all needs query=key_space and chunk_tokens=1, got "
                f"query={self.query} and chunk_tokens={self.chunk_tokens}"
            )
        if self.one_pass and not self.reads_all_layers:
            raise ConfigError(
                f"one_pass=True needs memory_layers=all, got memory_layers={self.memory_layers}: only there does the "
                "backbone itself read the memory"
            )
        if self.one_pass and not self.memory_tokens:
            raise ConfigError(
                "one_pass=True reads the memory while it encodes, got memory_tokens=0; use one_pass=False (without "
                "--one-pass)"
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
        """Number of chunks retrieved per token and head."""
        return self.top_k // self.chunk_tokens

    @property
    def reads_all_layers(self) -> bool:
        """True where the backbone reads the memory at every layer; False where a SideNet reads it."""
        return self.memory_layers == "all"

    @property
    def has_sink(self) -> bool:
        """True where every segment begins with the start token."""
        return self.reads_all_layers if self.sink is None else self.sink

    @property
    def encoded_behind(self) -> str:
        """Settings of the memory that segments are encoded behind, in one pass; empty where each is encoded alone."""
        if not self.one_pass:
            return ""
        names = ("memory_tokens", "near_tokens", "read_blocks", "block_tokens", "block_choice")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def resolve_layer(self, num_layers: int) -> int:
        """Return the memory layer of a backbone of `num_layers` layers.

        By default it is 0.75·L, rounded down to a layer m that the SideNet copies (`m % r == r - 1`), as in the paper
        (24 layers → 17). Raises ConfigError when r does not divide the layers, or for another memory layer. Without a
        SideNet any layer will do; the default is 5/6·L.
        """
        if self.reads_all_layers:
            layer = num_layers * 5 // 6 if self.memory_layer is None else self.memory_layer
            if layer >= num_layers:
                raise ConfigError(f"memory_layer must be below the backbone's {num_layers} layers, got {layer}")
            return layer
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
        """Return the config of `vars(config)`. Raises ConfigError for unknown names, with the known ones."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown settings {unknown}; known are {sorted(known)}")
        return cls(**values)


def with_fitting_sizes(settings: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """Return settings with sizes that fit a backbone of `max_tokens` positions (None: no limit), where none are given.

    Where every layer reads the memory, a segment gets half of the positions, at most 4,096 tokens. Two thirds of the
    others are for the near past, the rest for older blocks, both at most their usual size: more context is worth more
    than anything read from far away (docs/results.md). Where one layer reads it, a segment is never longer than the
    positions.
    """
    defaults = LongMemConfig()
    if max_tokens is None:
        return settings
    if settings.get("memory_layers", defaults.memory_layers) != "all":
        segment_tokens = min(defaults.segment_tokens, max_tokens)
        return {"segment_tokens": segment_tokens - segment_tokens % settings.get("chunk_tokens", 1)} | settings
    sized = {"segment_tokens": max(1, min(LONGEST_SEGMENT, max_tokens // 2))} | settings
    left = max(0, max_tokens - 1 - sized["segment_tokens"])
    sized = {"near_tokens": min(defaults.near_tokens, left * 2 // 3)} | sized
    left = max(0, left - sized["near_tokens"])
    block_tokens = sized.get("block_tokens", defaults.block_tokens)
    return {"read_blocks": min(defaults.read_blocks, left // max(1, block_tokens))} | sized


def _require_int(name: str, value: object, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
