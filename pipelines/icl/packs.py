# SPDX-License-Identifier: Apache-2.0
"""Length of the packs in which demonstrations are encoded, and the memories that they give."""

from collections.abc import Iterator, Mapping

from pipelines.icl.task_data import Memory, PreparedTask

PACK_TOKENS = 128
"""Tokens of whole demonstrations that are encoded together by default: the best of six sizes (docs/icl.md)."""


def memories_of(tasks: Mapping[str, PreparedTask], seeds: int, memory_shots: int) -> Iterator[tuple[str, int, Memory]]:
    """Yield the memory of every task and seed; none where no demonstrations are in memory."""
    for name, task in tasks.items():
        for seed in range(seeds):
            if (memory := task.memory(seed, memory_shots)) is not None:
                yield name, seed, memory


def pack_demonstrations(
    tasks: Mapping[str, PreparedTask],
    seeds: int,
    memory_shots: int,
    pack_tokens: int | None,
    segment_tokens: int,
    memory_tokens: int | None,
) -> int:
    """Pack the demonstrations of all tasks, and return the tokens of a pack, at most a segment.

    A pack takes the positions of a whole segment. Where the memory has a fixed size (`memory_tokens`) and no
    `pack_tokens` are given, packs become longer until it holds them.
    """
    size = min(pack_tokens or PACK_TOKENS, segment_tokens)
    while True:
        for task in tasks.values():
            task.pack_by(size)
        if pack_tokens is not None or memory_tokens is None or size == segment_tokens:
            return size
        ends = [memory.segments[-1].end_token for _, _, memory in memories_of(tasks, seeds, memory_shots)]
        if max(ends, default=0) <= memory_tokens:
            return size
        size = min(2 * size, segment_tokens)
