# SPDX-License-Identifier: Apache-2.0
"""Other methods to read a long text, at the reference model's width and depth.

They are memorizing-transformers-pytorch with a full memory of equal size, full attention over the whole context, and an
overlapping sliding window.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.speed.real_memory import RealMemory
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import REPEATS, Timing, take_turns
from longmem.backbone.fast.linear import is_worthwhile, use_fast_linear
from longmem.memory.window import WindowBuffer
from longmem.store.in_memory import InMemoryStore

PACKAGE = "memorizing-transformers-pytorch"
INSTALL = f"`pip install --no-deps {PACKAGE} einops einops-exts joblib` (its own requirements ask for faiss-gpu)"
STRIDE = 128


def segment_with_memory(memory: RealMemory, repeats: int) -> SpeedTable:
    """Time one segment that reads 65,536 tokens of memory and is written to it."""
    model, last, encoded = memory.model, memory.segment, memory.encoded
    config = model.config

    def longmem() -> None:
        made = model.encode(last)
        InMemoryStore().put(made.block)
        WindowBuffer(config.segment_tokens, key_space=model.key_space).append(made.block)
        model.score_segment(last, encoded.block.keys, encoded.state, memory.view)

    cases: dict[str, Callable[[], object]] = {"LongMem, backbone and SideNet": longmem}
    not_run = {}
    with _memorizing(memory) as as_it_is, _memorizing(memory, with_fast_linear=True) as faster:
        if as_it_is is None or faster is None:
            not_run[PACKAGE] = f"it is not installed: {INSTALL}"
        else:
            cases[PACKAGE] = as_it_is
            if is_worthwhile():
                cases[f"{PACKAGE}, with our linear layers"] = faster
        timings = take_turns(cases, repeats)
    title = f"{last.num_tokens} tokens read with {config.memory_tokens:,} in memory, and written"
    lines = [_line(name, timing, last.num_tokens) for name, timing in timings.items()]
    return SpeedTable(title, lines, {"threads": torch.get_num_threads()}, not_run)


def long_context(memory: RealMemory, num_tokens: int, repeats: int) -> SpeedTable:
    """Compare a context of `num_tokens` read by one model of the backbone's shape with LongMem segment by segment.

    The time of LongMem assumes that every segment reads a full window.
    """
    model, last, encoded = memory.model, memory.segment, memory.encoded
    segment_tokens = model.config.segment_tokens
    plain = _plain(memory, num_tokens)
    text = torch.from_numpy(np.resize(np.asarray(last.tokens), num_tokens).astype(np.int64))[None]
    text = text.to(model.backbone.device)

    def segment() -> None:
        window = WindowBuffer(segment_tokens, model.backbone.device, model.key_space)
        window.append(model.encode(last).block)
        model.score_segment(last, encoded.block.keys, encoded.state, memory.view)

    @torch.no_grad()
    def full() -> None:
        plain(text, logits_to_keep=1)

    @torch.no_grad()
    def sliding() -> None:
        plain(text[:, :segment_tokens], logits_to_keep=STRIDE)

    timings = take_turns({"LongMem": segment, "full attention": full, "window": sliding}, repeats)
    scaled = {
        "LongMem, every segment with a full window": _times(timings["LongMem"], num_tokens / segment_tokens),
        "full attention": timings["full attention"],
        f"window of {segment_tokens}, stride {STRIDE}": _times(timings["window"], num_tokens / STRIDE),
    }
    lines = [_line(name, timing, num_tokens) for name, timing in scaled.items()]
    return SpeedTable(f"context of {num_tokens:,} tokens", lines, {"threads": torch.get_num_threads()})


def repeats_for(num_tokens: int, repeats: int = REPEATS) -> int:
    """Return the number of repeats: few for full attention over 65,536 tokens, which takes minutes with a small
    spread."""
    return repeats if num_tokens <= 16_384 else 2


def _line(name: str, timing: Timing, num_tokens: int) -> BenchmarkRow:
    return BenchmarkRow(name, timing, {"tokens/s": f"{num_tokens / timing.median_s:,.0f}"})


def _times(timing: Timing, factor: float) -> Timing:
    return Timing(
        tuple(factor * seconds for seconds in timing.wall_s), tuple(factor * seconds for seconds in timing.cpu_s)
    )


def _plain(memory: RealMemory, num_tokens: int) -> PreTrainedModel:
    """Return the backbone's architecture with random weights and positions for the whole context.

    Its outputs are meaningless, its time is valid. It uses this project's linear layers, so that only the reading
    differs.
    """
    backbone = memory.model.backbone
    shape = deepcopy(backbone.model.config)
    shape.max_position_embeddings = num_tokens
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape).eval().to(backbone.device, backbone.dtype)
    use_fast_linear(model)
    return model


@contextmanager
def _memorizing(memory: RealMemory, *, with_fast_linear: bool = False) -> Iterator[Callable[[], object] | None]:
    """Yield a forward of the package's model, its memory filled with vectors of realistic number and kind."""
    try:
        from memorizing_transformers_pytorch import MemorizingTransformer
    except ImportError:
        yield None
        return
    model, config = memory.model, memory.model.config
    shape = model.backbone.shape
    with TemporaryDirectory(prefix="longmem-speed-") as folder:
        peer: Any = MemorizingTransformer(
            num_tokens=model.backbone.vocab_size,
            dim=model.backbone.hidden_size,
            dim_head=shape.head_dim,
            depth=model.backbone.num_layers,
            heads=shape.heads,
            memorizing_layers=(model.sidenet.memory_layer + 1,),
            xl_memory_layers=(),
            max_knn_memories=2 * config.memory_tokens,
            num_retrieved_memories=config.top_k,
            knn_memories_directory=str(Path(folder) / "knn"),
        ).eval()
        if with_fast_linear:
            use_fast_linear(peer)
        text = torch.from_numpy(np.asarray(memory.segment.tokens).astype(np.int64))[None]
        random = torch.Generator().manual_seed(0)
        with peer.knn_memories_context(batch_size=1) as memories:
            for _ in range(0, config.memory_tokens, config.segment_tokens):
                pairs = torch.randn((1, config.segment_tokens, 2, shape.head_dim), generator=random)
                memories[0].add(torch.nn.functional.normalize(pairs, dim=-1))

            @torch.no_grad()
            def forward() -> None:
                # restore the initial fill: the package drops its whole memory when it is full
                peer(text, knn_memories=memories, add_knn_memory=False)
                pairs = torch.randn((1, config.segment_tokens, 2, shape.head_dim), generator=random)
                memories[0].add(torch.nn.functional.normalize(pairs, dim=-1))

            yield forward
