# SPDX-License-Identifier: Apache-2.0
"""Order of work: scheduler, executors and requests of one model."""
