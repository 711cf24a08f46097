# SPDX-License-Identifier: Apache-2.0
"""Suffix identification: the job of `longmem suffix`."""
