"""Many-shot in-context learning: the job behind `longmem icl`."""
