"""`longmem service`: start, show and stop a service."""
