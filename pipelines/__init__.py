# SPDX-License-Identifier: Apache-2.0
"""Jobs of the `longmem` commands, from their input to their report."""

from longmem.system.omp import wait_briefly

# called here because every module below loads torch
wait_briefly()
