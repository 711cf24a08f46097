"""Ranges of independent rows on as many threads as torch uses: results do not depend on how many that are."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(work: Callable[[int, int], Result], num_rows: int) -> list[Result]:
    """Results of `work(first, last)` for ranges that cover all rows. The interpreter's lock is free while C runs."""
    threads = max(1, min(torch.get_num_threads(), num_rows))
    if threads == 1:
        return [work(0, num_rows)]
    cuts = [num_rows * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = pool.map(work, cuts[1:-1], cuts[2:])
        return [work(0, cuts[1]), *others]
