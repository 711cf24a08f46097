"""A kNN memory inside one layer of the backbone, which is trained to use it and so makes its own keys go stale.

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
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.baselines.base import AbstractBaseline, LogProbs, Sequence
from longmem.backbone.backbone import Backbone
from longmem.backbone.hooks import output_replaced, projected
from longmem.dtypes import to_array
from longmem.errors import CheckpointError
from longmem.sidenet.fusion import fuse


class TokenMemory:
    """Keys (unit length) and values of the last `capacity_tokens` tokens of one document, as they were written."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._keys: Float[Tensor, "kv_heads tokens head_dim"] | None = None
        self._values: Float[Tensor, "kv_heads tokens head_dim"] | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self._keys is None else self._keys.shape[1]

    def append(
        self, keys: Float[Tensor, "tokens kv_heads head_dim"], values: Float[Tensor, "tokens kv_heads head_dim"]
    ) -> None:
        self._keys = self._joined(self._keys, normalize(keys.detach().float(), dim=2))
        self._values = self._joined(self._values, values.detach().float())

    def read(
        self, queries: Float[Tensor, "tokens heads head_dim"], temperature: Float[Tensor, " heads"], top_k: int
    ) -> Float[Tensor, "tokens heads head_dim"]:
        """Gradients reach queries and temperature, never what is stored. The memory must not be empty."""
        assert self._keys is not None, "an empty memory has nothing to read"
        assert self._values is not None, "keys were written without values"
        heads = queries.shape[1]
        group = heads // len(self._keys)
        outputs = []
        for head, query in enumerate(normalize(queries.float(), dim=2).unbind(1)):
            keys, values = self._keys[head // group], self._values[head // group]
            found = (query.detach() @ keys.T).topk(min(top_k, len(keys)), dim=1).indices
            scores = torch.einsum("td,tkd->tk", query, keys[found]) * temperature[head]
            outputs.append(torch.einsum("tk,tkd->td", scores.softmax(dim=1), values[found]))
        return torch.stack(outputs, dim=1)

    def _joined(self, old: Tensor | None, new: Tensor) -> Tensor:
        rows = new.transpose(0, 1)
        return (rows if old is None else torch.cat([old, rows], dim=1))[:, -self._capacity_tokens :].contiguous()


class MemorizingTransformer(nn.Module):
    """The backbone with a memory in layer `layer`. Trainable parts: all of the backbone, gate and temperature."""

    def __init__(self, backbone: Backbone, layer: int, top_k: int = 32) -> None:
        super().__init__()
        self.model = backbone.model
        self.backbone = backbone
        self.layer = layer
        self.top_k = top_k
        # a memory that is not understood yet must not spoil a trained layer: a share of 0.12 to begin with
        self.gate = nn.Parameter(torch.full((backbone.shape.heads,), -2.0, device=backbone.device))
        self.temperature = nn.Parameter(torch.full((backbone.shape.heads,), 10.0, device=backbone.device))

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], memories: list[TokenMemory]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Hidden states for the head. Row b reads `memories[b]`; then its own keys and values are written to it."""
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

    def load(self, path: Path) -> None:
        """Take the weights that `memorizing_training.save` wrote. Raises CheckpointError when they do not fit."""
        parameters = dict(self.named_parameters())
        with safe_open(path, framework="pt") as file, torch.no_grad():
            if set(file.keys()) != set(parameters):
                raise CheckpointError(f"{path} does not fit: expected {len(parameters)} weights of this backbone")
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(name))


class MemorizingBaseline(AbstractBaseline):
    """A trained MemorizingTransformer, whose backbone is therefore not the common one any more."""

    name = "Memorizing Transformer"

    def __init__(self, model: MemorizingTransformer, segment_tokens: int, memory_tokens: int = 65_536) -> None:
        """`memory_tokens`: 0 reads nothing, which tells what the training alone brought."""
        self._model = model.eval()
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
            if not self._memory_tokens:
                memory = TokenMemory(1)
            segment = tokens[start : start + self._segment_tokens + 1]
            hidden = self._model(segment[None, :-1], [memory])
            scores.append(backbone.target_logprobs(hidden[0], segment[1:]))
        return to_array(torch.cat(scores) if scores else torch.empty(0))
