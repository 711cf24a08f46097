"""Settings of one LongMem model, stored as `config.json` beside its weights."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from longmem.errors import ConfigError

Dtype = Literal["float32", "float16", "bfloat16"]


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
    chunk_tokens: int = 4
    """Tokens that are found and read together; their mean key is the chunk's key."""
    memory_tokens: int = 65_536
    """Past tokens that a segment may read."""
    top_k: int = 64
    """K: retrieved tokens per token and head (`top_k / chunk_tokens` chunks)."""
    kv_dtype: Dtype = "float16"
    """Type in which keys and values are stored."""
    trained_steps: int = 0
    """Optimiser steps the SideNet has seen; 0 means that it still equals the backbone."""

    def __post_init__(self) -> None:
        for name in ("layer_reduction", "segment_tokens", "chunk_tokens", "top_k"):
            _require_int(name, getattr(self, name), minimum=1)
        for name in ("memory_tokens", "trained_steps"):
            _require_int(name, getattr(self, name), minimum=0)
        if self.memory_layer is not None:
            _require_int("memory_layer", self.memory_layer, minimum=0)
        if self.kv_dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f"kv_dtype must be float16, bfloat16 or float32, got {self.kv_dtype!r}")
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
