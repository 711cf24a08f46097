# SPDX-License-Identifier: Apache-2.0
"""Comparison of finished runs of one kind of job."""
