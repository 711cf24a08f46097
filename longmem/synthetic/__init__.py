# SPDX-License-Identifier: Apache-2.0
"""Synthetic tests and training texts whose answer is only in memory."""
