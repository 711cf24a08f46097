# SPDX-License-Identifier: Apache-2.0
"""Status and metrics of running jobs on a cluster."""
