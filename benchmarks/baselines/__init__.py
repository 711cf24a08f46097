# SPDX-License-Identifier: Apache-2.0
"""Baselines that read a long document with an equal backbone and equal tokens: one small file each."""
