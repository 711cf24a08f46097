"""Jobs: what the commands of `longmem` do, from their input to their report."""

from longmem.system.omp import wait_briefly

# here, because every module below loads torch
wait_briefly()
