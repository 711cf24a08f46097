"""Checks of a machine and of a backbone (`longmem doctor`)."""
