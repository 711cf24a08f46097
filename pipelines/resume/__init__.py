# SPDX-License-Identifier: Apache-2.0
"""The command `longmem resume`: a job is continued by its folder alone."""
