"""Skeleton of all jobs: folder, lock, resume, status, log, progress, summary."""
