# SPDX-License-Identifier: Apache-2.0
"""The SideNet: L/r decoder layers of the backbone's own class, fed by the backbone's hidden states (paper §3.2-3.3).

    x[0]   = H[0]
    x[i+1] = x[i] + a_i·(Layer_i(x[i]) − x[i]) + (H[r(i+1)] − H[r·i])        i = 0 … L/r − 1

H are the taps (before the final norm). Training starts with a_i = 0, where the residuals telescope to H[L]: an
untrained SideNet is the backbone. The paper has a_i = 1. Layer i starts as a copy of block r·i + r − 1. So the memory
layer's queries match the stored keys from step 0.

The layers run in two parts, because only the second needs a memory. `prepare` runs those below the memory layer and may
run on any worker; `forward` runs the memory layer and those above it. The parts exchange a *state*: x[i] and the steps
H[r(j+1)] − H[r·j] of the layers j ≥ i that are still to run. `len(state)` encodes the progress: once the first i layers
have run, it is `num_layers + 1 - i`.

A SideNet that is the backbone (all a_i are 0) runs no layer, except for gradients. Its state is one part, what the
backbone gives its own language-model head, and only copies are left to do.

Each part runs inside a shallow copy of the backbone's own stack, so position scheme, causal mask and cache are the
family's own code. Embeddings, position tables and the language-model head are shared with the backbone and frozen.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from longmem.backbone.backbone import Backbone
from longmem.backbone.fast.linear import use_fast_linear
from longmem.backbone.hooks import hidden_input, hidden_output, output_replaced, projected
from longmem.config import LongMemConfig
from longmem.retrieval.base import AbstractChunkSearch
from longmem.sidenet.copy_head import CopyHead
from longmem.sidenet.low_rank import use_low_rank
from longmem.sidenet.memory_attention import fuse
from longmem.sidenet.readers import MemoryReader, RetrievedMemory
from longmem.sidenet.reading_model import ReadingInput, ReadingModel, ReadingOutput


def start_state(taps: Float[Tensor, "taps batch tokens hidden"]) -> Float[Tensor, "taps batch tokens hidden"]:
    """Return the initial state of a segment, before any layer has run; no parts for no taps."""
    return torch.cat([taps[:1], taps.diff(dim=0)])


@dataclass(frozen=True)
class SideNetCache:
    """Key-value caches of both parts, for decoding step by step."""

    below: Any
    """A transformers cache, like `reading`; None where the memory layer is the first one."""
    reading: Any


class SideNet(ReadingModel):
    """Trainable half of LongMem, initialised from the backbone's blocks: `prepare`, then `forward`.

    Parameters beyond the copied ones: `scale` (a_i, one per layer), `gate` (b_h, one per query head of the memory
    layer; sigmoid 0.5 at the start, as in the paper), and those of the memory reader and the copy head.
    """

    def __init__(self, backbone: Backbone, config: LongMemConfig) -> None:
        super().__init__()
        self.config = config
        self.memory_layer = config.resolve_layer(backbone.num_layers)
        r = config.layer_reduction
        self._family, self._shape = backbone.family, backbone.shape
        sources = range(r - 1, backbone.num_layers, r)
        self.layers = nn.ModuleList(copy.deepcopy(backbone.layers[source]) for source in sources)
        for part in (self.layers[: self.memory_index], self.layers[self.memory_index :]):
            for index, layer in enumerate(part):
                for module in layer.modules():
                    if hasattr(module, "layer_idx"):
                        setattr(module, "layer_idx", index)  # noqa: B010 - mypy takes a module's attributes for tensors
        norm = getattr(backbone.stack, backbone.family.norm)
        self.norm: nn.Module | None = copy.deepcopy(norm)
        # deep copies of frozen blocks are frozen: unfreeze them
        for copied in (self.layers, self.norm):
            if copied is not None:
                copied.requires_grad_(True)
        self.scale = nn.Parameter(torch.full((len(sources),), float(config.scale_start)))
        self.gate = nn.Parameter(torch.full((self._shape.heads,), float(config.gate_start)))
        attention_scale = self._family.scale_of(self._memory_attention)
        self.reader = MemoryReader(self._shape, config, attention_scale)
        head_input = int(backbone.model.get_output_embeddings().weight.shape[1])
        self.copy_head = (
            CopyHead(head_input, config, self._shape.kv_heads, attention_scale) if config.copy_head else None
        )
        use_fast_linear(self)
        if config.delta_rank:
            use_low_rank(self.layers, config.delta_rank)
        first = self.memory_index
        self.always_runs_layers = False
        """True to run layers that change nothing; tests and benchmarks compare both ways."""
        # lists keep the shared modules unregistered: they are neither saved nor trained
        self._backbone_norm = [norm]
        self._stacks = [
            _shallow_stack(backbone, self.layers[:first], nn.Identity(), sources[:first]),
            _shallow_stack(backbone, self.layers[first:], self.norm, sources[first:]),
        ]

    runs_backbone = False

    @property
    def num_parts(self) -> int:
        return 1 if self.is_backbone else len(self.layers) + 1

    @property
    def is_backbone(self) -> bool:
        """True where hidden states are the backbone's own, whatever the layers compute, and no query comes from them.

        Weights can change between two calls, so that each call looks at them: at most some thousand numbers.
        """
        return (
            not self.always_runs_layers
            and self.config.query == "key_space"
            and not self.changes_backbone
            and _is_equal(self.norm, self._backbone_norm[0])
        )

    @property
    def changes_backbone(self) -> bool:
        """False for scales of 0, with which training starts: only a copy head changes results then."""
        return bool(self.scale.detach().any())

    def gate_mean(self) -> float:
        return float(self.gate.sigmoid().float().mean()) if self.config.fusion else 0.0

    @property
    def memory_index(self) -> int:
        """Index of the SideNet layer that reads the memory: the copy of the layer whose keys are stored."""
        return self.memory_layer // self.config.layer_reduction

    @property
    def _memory_attention(self) -> nn.Module:
        return self._family.attention_of(self.layers[self.memory_index])

    def new_cache(self) -> SideNetCache:
        """Return an empty cache for `prepare` and `forward`, to decode step by step."""
        below, reading = self._stacks
        return SideNetCache(
            DynamicCache(config=below.config) if self.memory_index else None, DynamicCache(config=reading.config)
        )

    def prepare(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: Float[Tensor, "parts batch tokens hidden"],
        cache: SideNetCache | None = None,
    ) -> Float[Tensor, "fewer batch tokens hidden"]:
        """Return the state before the memory layer. A state that has already reached it is returned unchanged."""
        first, done = self.memory_index, len(self.layers) + 1 - len(state)
        assert done in (0, first, len(self.layers)), f"layers run from 0 to {first}, or are done; {done} were"
        if done >= first:
            return state
        hidden, steps = state[0], state[1:]
        with self._moved(range(first), hidden, steps[:first]) as moved:
            self._run(self._stacks[0], tokens, hidden.device, cache and cache.below)
        return torch.cat([moved[-1][None], steps[first:]])

    def forward(
        self, given: ReadingInput, search: AbstractChunkSearch, cache: SideNetCache | None = None
    ) -> ReadingOutput:
        """Run the memory layer and those above it. Row b reads `views[b]` and nothing else."""
        if len(given.state) == 1:
            # the keys ask, in the type in which a layer would have asked
            found = self._read(given.keys.to(given.state.dtype), given, search, attends=False)
            copies = self._copies(given, given.state[0], found)
            return ReadingOutput(given.state[0], found, copies, [None] * len(given.views))
        attention = self._memory_attention
        hidden, *steps = given.state
        readings: list[RetrievedMemory | None] = []

        def read_and_fuse(local: Tensor) -> Tensor:
            readings.extend(self._read(latest()[0], given, search))
            rows = [
                row
                if reading is None or reading.attended is None
                else fuse(row[None], reading.attended[None], self.gate)[0]
                for row, reading in zip(local, readings, strict=True)
            ]
            return torch.stack(rows)

        with ExitStack() as hooks:
            latest = hooks.enter_context(projected(self._family, attention, self._shape))
            hooks.enter_context(output_replaced(self._family, attention, self._shape, read_and_fuse))
            hooks.enter_context(self._moved(range(self.memory_index, len(self.layers)), hidden, steps))
            read: Tensor = self._run(self._stacks[1], given.tokens, hidden.device, cache and cache.reading)
        return ReadingOutput(read, readings, self._copies(given, read, readings), [None] * len(given.views))

    def _run(self, stack: nn.Module, tokens: Tensor, device: torch.device, cache: Any) -> Tensor:
        output = stack(input_ids=tokens.to(device, torch.long), past_key_values=cache, use_cache=cache is not None)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @contextmanager
    def _moved(self, indices: range, start: Tensor, steps: Sequence[Tensor] | Tensor) -> Iterator[list[Tensor]]:
        """Make layers `indices` start with `start` and apply the update of the module docstring to their outputs.

        `start` replaces the stack's own embedding of the tokens. Yields a list of the layers' outputs, filled as they
        run.
        """
        moved: list[Tensor] = []

        def begin(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (start, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": start}

        def residual(scale: Tensor, step: Tensor) -> Any:
            def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                before, after = hidden_input(args, kwargs), hidden_output(output)
                moved.append(before + scale.to(before.dtype) * (after - before) + step)
                return (moved[-1], *output[1:]) if isinstance(output, tuple) else moved[-1]

            return hook

        with ExitStack() as hooks:
            for index, step in zip(indices, steps, strict=True):
                hook = residual(self.scale[index], step)
                hooks.callback(self.layers[index].register_forward_hook(hook, with_kwargs=True).remove)
            first = self.layers[indices.start]
            hooks.callback(first.register_forward_pre_hook(begin, with_kwargs=True).remove)
            yield moved


def _is_equal(one: nn.Module | None, other: nn.Module | None) -> bool:
    """Return True if two modules of one class hold equal numbers, in whatever type."""
    if one is None or other is None:
        return one is other
    return all(
        torch.equal(mine.float(), theirs.float())
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True)
    )


def _shallow_stack(backbone: Backbone, layers: nn.ModuleList, norm: nn.Module | None, sources: range) -> nn.Module:
    """Return a copy of the backbone's stack with copies of its blocks `sources` and another norm.

    Every other module is the backbone's own object.
    """
    stack = copy.copy(backbone.stack)
    stack._modules = dict(backbone.stack._modules)
    setattr(stack, backbone.family.layers, layers)
    setattr(stack, backbone.family.norm, norm)
    config = copy.deepcopy(backbone.model.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[source] for source in sources]
    stack.config = config
    return stack
