"""Prediction of time, memory and disk of a job (`longmem plan`)."""
