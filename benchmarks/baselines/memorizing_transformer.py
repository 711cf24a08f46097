# SPDX-License-Identifier: Apache-2.0
"""kNN memory inside one layer of the backbone, which is trained with it, so that stored keys become stale.

Wu et al. 2022, "Memorizing Transformers" (arXiv 2203.08913), section 3: per head, the nearest keys of the document's
past are attended to with their own softmax and mixed with local attention by a learned gate,

    out_h = (1 - g_h) · local_h + g_h · Σ_{j in top k} softmax_j(τ_h · q̂_h · k̂_h,j) · v_h,j        g_h = sigmoid(b_h)

Queries and keys are position-free (before RoPE) and, as in the paper, of unit length, so that a key written many steps
ago differs in direction only. Unlike LongMem, the layer that writes the memory is trained: see `memorizing_training`.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from benchmarks.baselines.token_memory import TokenMemory
from longmem.backbone.backbone import Backbone
from longmem.backbone.hooks import output_replaced, projected
from longmem.dtypes import to_array
from longmem.errors import CheckpointError
from longmem.sidenet.memory_attention import fuse


class MemorizingTransformer(nn.Module):
    """Backbone with a memory in layer `layer`. Trainable parts: all of the backbone, gate and temperature."""

    def __init__(self, backbone: Backbone, layer: int, top_k: int = 32) -> None:
        super().__init__()
        self.model = backbone.model
        self.backbone = backbone
        self.layer = layer
        self.top_k = top_k
        # small initial share (0.12), so that an untrained memory does not disturb a trained layer
        self.gate = nn.Parameter(torch.full((backbone.shape.heads,), -2.0, device=backbone.device))
        self.temperature = nn.Parameter(torch.full((backbone.shape.heads,), 10.0, device=backbone.device))

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], memories: list[TokenMemory]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return hidden states for the head. Row b reads `memories[b]`; then its own keys and values are written to
        it."""
        backbone = self.backbone
        attention = backbone.family.attention_of(backbone.layers[self.layer])

        def with_memory(local: Tensor) -> Tensor:
            queries = latest()[0]
            return torch.stack(
                [
                    fuse(own[None], memory.read(query, self.temperature, self.top_k).to(own.dtype)[None], self.gate)[0]
                    if memory.num_tokens
                    else own
                    for own, query, memory in zip(local, queries, memories, strict=True)
                ]
            )

        with (
            projected(backbone.family, attention, backbone.shape) as latest,
            output_replaced(backbone.family, attention, backbone.shape, with_memory),
        ):
            hidden: Tensor = backbone.stack(input_ids=tokens, use_cache=False).last_hidden_state
        for memory, keys, values in zip(memories, *latest()[1:], strict=True):
            memory.append(keys, values)
        return hidden


def open_memorizing(backbone: Backbone, path: Path) -> MemorizingTransformer:
    """Open a model that `memorizing_training.save` wrote, in the dtype of `backbone`, whose weights are replaced.

    Raises CheckpointError when the file does not fit this backbone.
    """
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            settings = file.metadata() or {}
            model = MemorizingTransformer(backbone, int(settings["layer"]), int(settings["top_k"]))
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(name))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} does not hold a Memorizing Transformer of {backbone.name}: {error}") from error
    return model.eval().requires_grad_(False)


class MemorizingBaseline(AbstractBaseline):
    """Trained MemorizingTransformer, whose backbone therefore differs from that of the other rows."""

    def __init__(self, model: MemorizingTransformer, segment_tokens: int, memory_tokens: int = 65_536) -> None:
        """Open the baseline. `memory_tokens=0` reads no memory, which isolates the effect of the training."""
        self.name = "Memorizing Transformer" + ("" if memory_tokens else ", memory off")
        self._model = model
        self._segment_tokens = segment_tokens
        self._memory_tokens = memory_tokens

    @property
    def description(self) -> str:
        if not self._memory_tokens:
            return "the same weights without memory: what training the backbone brought"
        return (
            f"backbone trained, kNN memory in layer {self._model.layer}: top {self._model.top_k} per head "
            f"of {self._memory_tokens:,} tokens"
        )

    @torch.no_grad()
    def logprobs(self, sequence: Sequence) -> LogProbs:
        backbone = self._model.backbone
        tokens = torch.from_numpy(np.array(sequence)).to(backbone.device, torch.long)
        memory, scores = TokenMemory(self._memory_tokens), []
        for start in range(0, len(tokens) - 1, self._segment_tokens):
            segment = tokens[start : start + self._segment_tokens + 1]
            hidden = self._model(segment[None, :-1], [memory])
            scores.append(backbone.target_logprobs(hidden[0], segment[1:]))
        return to_array(torch.cat(scores) if scores else torch.empty(0))
