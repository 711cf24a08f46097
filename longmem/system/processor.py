# SPDX-License-Identifier: Apache-2.0
"""File in which Linux describes the processor."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
"""Absent on other systems."""
