# SPDX-License-Identifier: Apache-2.0
"""Many-shot in-context learning: the job of `longmem icl`."""
