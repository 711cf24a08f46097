"""`longmem status` and `longmem monitoring`."""
