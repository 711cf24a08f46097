"""Executor that sends tasks to Ray workers and retries them when workers die."""
