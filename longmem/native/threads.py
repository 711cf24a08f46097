# SPDX-License-Identifier: Apache-2.0
"""Split of independent rows over torch's number of threads. Results do not depend on that number."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_threads(work: Callable[[int, int], Result], num_rows: int) -> list[Result]:
    """Run `work(first, last)` for ranges that cover all rows, and return the results in order of the ranges.

    C code runs in parallel, because `ctypes` releases the interpreter lock.
    """
    threads = max(1, min(torch.get_num_threads(), num_rows))
    if threads == 1:
        return [work(0, num_rows)]
    cuts = [num_rows * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = pool.map(work, cuts[1:-1], cuts[2:])
        return [work(0, cuts[1]), *others]
