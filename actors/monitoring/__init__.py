"""Status and metrics of running jobs on a cluster."""
