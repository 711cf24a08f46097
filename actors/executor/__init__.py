# SPDX-License-Identifier: Apache-2.0
"""Executor that sends tasks to Ray workers and retries them when workers die."""
