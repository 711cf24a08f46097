"""Process-wide settings: memory allocation, OpenMP threads, redaction of secrets."""
