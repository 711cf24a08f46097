# SPDX-License-Identifier: Apache-2.0
"""The frozen backbone: one forward pass of a segment gives keys and values, taps, and its log-probabilities."""

import longmem.backbone.one_listing  # noqa: F401 - before anything else of transformers

# isort: split
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from longmem.backbone.converted import model_folder
from longmem.backbone.families import AttentionShape, Family, family_of
from longmem.backbone.hooks import projected, tapped
from longmem.backbone.loading import hash_weights, load_causal_lm, max_tokens_of
from longmem.backbone.target_logprobs import target_logprobs
from longmem.config import Dtype
from longmem.errors import ConfigError

LOGIT_ROWS = 256
"""Rows of logits per step: limits the float32 logits of a vocabulary of 150,000 to 150 MB."""


@dataclass(frozen=True)
class BackboneOutput:
    """Output of one forward pass over a batch of segments of equal length."""

    keys: Float[Tensor, "batch tokens stored_heads head_dim"]
    values: Float[Tensor, "batch tokens stored_heads head_dim"]
    taps: Float[Tensor, "taps batch tokens hidden"]
    """Inputs of every `tap_every`-th block and the output of the last; `taps` is 0 where none were wanted."""
    hidden: Float[Tensor, "batch tokens head_input"]
    """Input of the language-model head, after the final norm. As wide as the residual stream, unless the model projects
    it first (small OPT models)."""

    def continued(self, rest: "BackboneOutput") -> "BackboneOutput":
        """Return one output for rows that begin with this output's only row and go on with those of `rest`."""
        parts = {}
        for name, rows in vars(rest).items():
            row_axis = _ROW_AXIS[name]
            size = [-1] * rows.ndim
            size[row_axis] = rows.shape[row_axis]
            parts[name] = torch.cat([getattr(self, name).expand(size), rows], dim=row_axis + 1)
        return BackboneOutput(**parts)


_ROW_AXIS = {"keys": 0, "values": 0, "taps": 1, "hidden": 0}
"""Axis of the batch in each field of an output. That of the tokens follows it."""


def joined_rows(outputs: Sequence[BackboneOutput], order: Int[Tensor, " rows"]) -> BackboneOutput:
    """Return one output of all rows; its row i is row `order[i]` of the outputs one after the other."""
    parts = {}
    for name, axis in _ROW_AXIS.items():
        rows = torch.cat([getattr(output, name) for output in outputs], dim=axis)
        parts[name] = rows.index_select(axis, order.to(rows.device))
    return BackboneOutput(**parts)


class Backbone:
    """A frozen Hugging Face causal LM and the map of its family. It is never trained.

    Raises ModelError or a subclass when it cannot be loaded.
    """

    def __init__(self, model: PreTrainedModel, name: str, folder: Path | None = None) -> None:
        """`folder` holds exactly the weights of `model`, if they were loaded from a local folder."""
        self.model = model
        self.name = name
        self.folder = folder
        self.family: Family = family_of(model.config.model_type)
        config = model.config
        self._logits_divisor = self.family.logits_divisor_of(config)
        heads = config.num_attention_heads
        self.shape = AttentionShape(
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    @classmethod
    def load(
        cls,
        source: str | Path,
        dtype: Dtype = "float32",
        name: str | None = None,
        adapter: str | Path | None = None,
    ) -> "Backbone":
        """Load a folder, GGUF file or hub id, and merge the PEFT adapter of a folder if given.

        `name` is used in reports; by default, it is the last part of the source (and of the adapter).
        """
        called = name or Path(source).name
        source = model_folder(source)
        # with an adapter, the folder does not hold the merged weights
        folder = Path(source).absolute() if adapter is None and Path(source).is_dir() else None
        return cls(
            load_causal_lm(source, dtype, adapter),
            called if adapter is None else f"{called}+{Path(adapter).name}",
            folder,
        )

    @property
    def stack(self) -> nn.Module:
        return self.family.stack_of(self.model)

    @property
    def layers(self) -> nn.ModuleList:
        return self.family.layers_of(self.stack)

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def max_tokens(self) -> int | None:
        """Longest context of the position encoding in tokens; None without a limit (ALiBi)."""
        return max_tokens_of(self.model.config)

    def check_segment_tokens(self, segment_tokens: int) -> None:
        """Raise ConfigError if a segment is longer than the backbone's context."""
        if self.max_tokens is not None and segment_tokens > self.max_tokens:
            raise ConfigError(
                f"segment_tokens must be at most {self.max_tokens} for backbone {self.name} "
                f"(its position limit), got {segment_tokens}"
            )

    def digest(self) -> str:
        """Return the hash of the loaded weights."""
        return hash_weights(self.model)

    @torch.no_grad()
    def forward(
        self, tokens: Int[Tensor, "batch tokens"], layers: int | Sequence[int], tap_every: int | None, cache: Any = None
    ) -> BackboneOutput:
        """Run one forward pass, and keep keys and values of one layer or several.

        Args:
            tap_every: distance in blocks between two taps; None for no taps.
            cache: a transformers cache for incremental decoding, or None.
        """
        with ExitStack() as hooks:
            taps = hooks.enter_context(tapped(self.layers, tap_every)) if tap_every else []
            latest = [
                hooks.enter_context(projected(self.family, self.family.attention_of(self.layers[layer]), self.shape))
                for layer in ([layers] if isinstance(layers, int) else layers)
            ]
            hidden = self.run(tokens, cache)
            projections = [of_layer() for of_layer in latest]
        keys, values = (torch.cat([found[part] for found in projections], dim=2) for part in (1, 2))
        no_taps = hidden.new_empty((0, *hidden.shape[:2], self.hidden_size))
        return BackboneOutput(keys=keys, values=values, taps=torch.stack(taps) if taps else no_taps, hidden=hidden)

    def run(self, tokens: Int[Tensor, "batch tokens"], cache: Any = None) -> Float[Tensor, "batch tokens head_input"]:
        """Run embeddings, blocks and final norm. A cache is read, and extended by these tokens."""
        output = self.stack(
            input_ids=tokens.to(self.device, torch.long), past_key_values=cache, use_cache=cache is not None
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Float[Tensor, "tokens head_input"]) -> Float32[Tensor, "tokens vocabulary"]:
        return self._head(hidden).float()

    def _head(self, hidden: Float[Tensor, "tokens head_input"]) -> Float[Tensor, "tokens vocabulary"]:
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        # before the conversion to float32, as in transformers
        return logits if self._logits_divisor == 1 else logits / self._logits_divisor

    def target_logprobs(
        self, hidden: Float[Tensor, "tokens head_input"], targets: Int[Tensor, " targets"]
    ) -> Float32[Tensor, " targets"]:
        """Return the natural-log probability of target i at position i, for `targets <= tokens`."""
        wanted = targets.to(hidden.device, torch.long)
        parts = zip(hidden[: len(wanted)].split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True)
        return torch.cat([target_logprobs(self._head(rows), part) for rows, part in parts])

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for incremental decoding with `forward`."""
        return DynamicCache(config=self.model.config)

    def drop_layers(self) -> None:
        """Free the blocks, and keep embeddings, norm and head, which are all that a reader needs."""
        setattr(self.stack, self.family.layers, nn.ModuleList())
