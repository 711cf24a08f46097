"""Numbers that a reader can reproduce: `python -m benchmarks NAME`, each one command, JSON and a table."""

from longmem.system.omp import wait_briefly

# here, because every module below loads torch
wait_briefly()
