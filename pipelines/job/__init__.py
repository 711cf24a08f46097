"""What every job shares: folder, lock, resume, status, log, progress, summary."""
