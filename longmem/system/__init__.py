# SPDX-License-Identifier: Apache-2.0
"""Process-wide settings: memory allocation, OpenMP threads, redaction of secrets."""
