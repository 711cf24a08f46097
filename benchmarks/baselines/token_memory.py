# SPDX-License-Identifier: Apache-2.0
"""Memory of a Memorizing Transformer: keys and values of one document, read by exact search per head."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


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
        """Attend to the nearest keys. Gradients reach queries and temperature, never stored tensors.

        The memory must not be empty.
        """
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
        joined = new.transpose(0, 1) if old is None else torch.cat([old, new.transpose(0, 1)], dim=1)
        return joined[:, max(0, joined.shape[1] - self._capacity_tokens) :].contiguous()
