# SPDX-License-Identifier: Apache-2.0
"""Skeleton of all jobs: folder, lock, resume, status, log, progress, summary."""
