"""Service whose workers and memory many jobs and clients share."""
