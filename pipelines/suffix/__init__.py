"""Suffix identification: the job of `longmem suffix`."""
