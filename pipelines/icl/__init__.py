"""Many-shot in-context learning: the job of `longmem icl`."""
