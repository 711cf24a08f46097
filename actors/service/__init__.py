# SPDX-License-Identifier: Apache-2.0
"""Service whose workers and memory many jobs and clients share."""
