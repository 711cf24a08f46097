# SPDX-License-Identifier: Apache-2.0
"""The command `longmem generate`."""
