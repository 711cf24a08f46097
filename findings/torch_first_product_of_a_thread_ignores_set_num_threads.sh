#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0 (CPU), Python 3.11, Linux on x86-64.
#
# Input: torch.set_num_threads(1) in the main thread, OMP_NUM_THREADS=4. A new Python thread multiplies two matrices,
#   twice, as its first operations of torch. Another new thread adds up a matrix first, and then multiplies.
#
# Expected: one thread computes each product, because the setting is the process's: torch.get_num_threads() is 1 in the
#   new threads.
# Happens: the first product of a thread runs on OMP_NUM_THREADS threads (by default all cores), which it starts and
#   which stay. The second one runs on one. torch gives a thread its number of threads at the first operation that
#   asks for it: a sum does, a product goes to the library straight away. Where that library divides the work by threads,
#   bits of the first product differ from all later ones (seen with bfloat16 on a processor with AMX).
#
# Output seen:
#   threads started by products of a new thread: float32 [3, 0], bfloat16 [3, 0]
#   the same after a sum: float32 [0, 0], bfloat16 [0, 0]
#   torch.get_num_threads() in a new thread: 1
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy || exit 2
    PYTHON=venv/bin/python
fi
OMP_NUM_THREADS=4 "$PYTHON" - <<'PYTHON_END'
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

torch.set_num_threads(1)


def started(left, right, sum_first):
    """Return the number of threads that each of two products starts, in the calling thread."""
    if sum_first:
        left.sum(1)
    counts = [len(os.listdir("/proc/self/task"))]
    for _ in range(2):
        torch.mm(left, right)
        counts.append(len(os.listdir("/proc/self/task")))
    return [after - before for before, after in zip(counts, counts[1:])]


def in_a_new_thread(work, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments).result()


found = {}
for sum_first in (False, True):
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(1024, 512).to(dtype), torch.randn(512, 1024).to(dtype)
        torch.mm(left, right)
        found[sum_first, dtype] = in_a_new_thread(started, left, right, sum_first)
for sum_first, text in ((False, "threads started by products of a new thread"), (True, "the same after a sum")):
    single, half = found[sum_first, torch.float32], found[sum_first, torch.bfloat16]
    print(f"{text}: float32 {single}, bfloat16 {half}")
reported = in_a_new_thread(torch.get_num_threads)
print("torch.get_num_threads() in a new thread:", reported)
holds = reported == 1 and all(counts == ([0, 0] if first else [3, 0]) for (first, _), counts in found.items())
sys.exit(0 if holds else 1)
PYTHON_END
