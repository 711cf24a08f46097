"""Start, status and stop of a service (`longmem service`)."""
