"""A service whose workers and memory many jobs share."""
