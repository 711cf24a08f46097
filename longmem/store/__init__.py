# SPDX-License-Identifier: Apache-2.0
"""Durable memory: the store contract and its implementations."""
