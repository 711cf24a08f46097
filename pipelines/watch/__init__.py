# SPDX-License-Identifier: Apache-2.0
"""Status of jobs and export of dashboards (`longmem status`, `longmem monitoring`)."""
