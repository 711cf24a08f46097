#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0 (CPU), Python 3.11, Linux on x86-64.
#
# Input: 65,536 float16 numbers, which stay in the cache, one thread; the same through float32.
#
# Expected: `x.to(torch.bfloat16)` is at least as fast as `x.float().to(torch.bfloat16)`, which writes and reads an
#   intermediate result of twice the size. Both round each number once, because float16 to float32 is exact.
# Happens: the direct copy takes nearly three times as long as both copies together. The results have equal bits.
#
# Output seen (CPU time, best of 15):
#   equal bits: True
#   200 times: one step 12 ms, two steps 4 ms
#   two steps are faster: True
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
OMP_NUM_THREADS=1 "$PYTHON" - <<'PYTHON_END'
import sys
import time

import torch

torch.set_num_threads(1)
numbers = torch.randn(65_536, generator=torch.Generator().manual_seed(0)).half()


def best_s(work):
    taken = []
    for _ in range(15):
        begun = time.process_time()
        for _ in range(200):
            work()
        taken.append(time.process_time() - begun)
    return min(taken)


one, two = (lambda: numbers.to(torch.bfloat16)), (lambda: numbers.float().to(torch.bfloat16))
equal = torch.equal(one().view(torch.int16), two().view(torch.int16))
one_s, two_s = best_s(one), best_s(two)
faster = two_s * 1.3 < one_s
print("equal bits:", equal)
print(f"200 times: one step {one_s * 1000:.0f} ms, two steps {two_s * 1000:.0f} ms")
print("two steps are faster:", faster)
sys.exit(0 if equal and faster else 1)
PYTHON_END
