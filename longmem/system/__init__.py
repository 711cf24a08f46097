"""Process-wide settings: memory allocation, OpenMP threads, secrets in texts."""
