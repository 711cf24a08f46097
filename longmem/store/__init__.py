"""Durable memory: the store contract and its implementations."""
