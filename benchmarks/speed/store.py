# SPDX-License-Identifier: Apache-2.0
"""Store against plain files: writing blocks one by one, and opening and reading a full window."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.speed.real_memory import KEY, RealMemory
from benchmarks.speed.table import BenchmarkRow, SpeedTable
from benchmarks.speed.timing import take_turns
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import StoreSettings
from longmem.store.lance.fsync import Durability
from longmem.types import KVBlock

NUM_BLOCKS = 128
"""Number of blocks: a window of 65,536 tokens in segments of 512."""


def store(memory: RealMemory, repeats: int) -> Iterator[SpeedTable]:
    """Yield one table for writing and one for reading."""
    blocks = [_block(memory.encoded.block, segment) for segment in range(NUM_BLOCKS)]
    num_bytes = sum(block.num_bytes for block in blocks)
    with TemporaryDirectory(prefix="longmem-speed-") as name:
        folder = Path(name)
        numbers = iter(range(10**6))

        def written(durability: Durability) -> Path:
            path = folder / f"{next(numbers)}.lance"
            with StoreSettings(str(path), durability).open() as opened:
                for block in blocks:
                    opened.put(block)
            return path

        def files(sync: bool) -> Path:
            path = folder / f"{next(numbers)}"
            path.mkdir()
            for block in blocks:
                with (path / str(block.segment)).open("wb") as file:
                    for array in (block.tokens, block.keys, block.values):
                        file.write(array.data)
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
            return path

        yield _table(
            f"write {NUM_BLOCKS} blocks one by one, {num_bytes / 2**20:.0f} MiB",
            {
                "plain files": lambda: files(sync=False),
                "plain files, fsync each": lambda: files(sync=True),
                "LanceDB, durability process": lambda: written("process"),
                "LanceDB, durability power": lambda: written("power"),
            },
            num_bytes,
            repeats,
        )
        kept, plain = written("process"), files(sync=False)
        yield _table(
            "open again and read the whole window",
            {
                "plain files": lambda: [np.fromfile(path, dtype=np.uint8) for path in sorted(plain.iterdir())],
                "LanceDB, opened and listed": lambda: _open(kept, lambda opened: opened.segments(KEY)),
                "LanceDB, opened and read": lambda: _open(kept, lambda opened: opened.read(KEY, 0, NUM_BLOCKS)),
            },
            num_bytes,
            repeats,
        )


def _open(path: Path, use: Callable[[AbstractMemoryStore], object]) -> None:
    with StoreSettings(str(path), "process").open() as opened:
        use(opened)


def _table(title: str, cases: dict[str, Callable[[], object]], num_bytes: int, repeats: int) -> SpeedTable:
    timings = take_turns(cases, repeats)
    lines = [
        BenchmarkRow(name, timing, {"MiB/s": f"{num_bytes / 2**20 / timing.median_s:,.0f}"})
        for name, timing in timings.items()
    ]
    return SpeedTable(title, lines, {"threads": torch.get_num_threads(), "num_bytes": num_bytes})


def _block(block: KVBlock, segment: int) -> KVBlock:
    start = segment * block.fingerprint.segment_tokens
    return KVBlock(KEY, segment, start, block.tokens, block.keys, block.values, block.fingerprint)
