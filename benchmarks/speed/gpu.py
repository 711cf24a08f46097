# SPDX-License-Identifier: Apache-2.0
"""Cost of memory and of the peers on one large GPU, at the shapes of well-known models.

Keys and values of the window are in GPU memory; search and fusion are torch's (`search=torch`). Times are wall-clock
times after the GPU has finished.
"""

from collections.abc import Iterator

from benchmarks.speed import fusion, peers, pipeline, retrieval
from benchmarks.speed.real_memory import random_memory
from benchmarks.speed.shapes import Shape
from benchmarks.speed.table import SpeedTable
from longmem.config import Dtype


def gpu(
    shape: Shape,
    device: str,
    dtype: Dtype,
    memory_tokens: int,
    context_tokens: list[int],
    repeats: int,
    *,
    compiled: bool = True,
) -> Iterator[SpeedTable]:
    """Yield every table of one shape; `compiled` has its meaning in `fusion`."""
    memory = random_memory(shape, device, dtype, memory_tokens=memory_tokens)
    yield retrieval.on_device(memory, shape.name, repeats)
    yield fusion.fusion(memory, shape.name, repeats, compiled=compiled)
    yield pipeline.segment(memory, f"one segment of {shape.name}", repeats)
    for num_tokens in context_tokens:
        yield peers.long_context(memory, num_tokens, repeats)
