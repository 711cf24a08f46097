"""Order of work: scheduler, executors and requests of one model."""
