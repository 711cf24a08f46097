# SPDX-License-Identifier: Apache-2.0
"""Checks of a machine and of a backbone (`longmem doctor`)."""
