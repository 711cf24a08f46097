# SPDX-License-Identifier: Apache-2.0
"""Reproducible measurements: `python -m benchmarks NAME` runs one benchmark and writes JSON and a table."""

from longmem.system.omp import wait_briefly

# set before torch is loaded, which every module below does
wait_briefly()
