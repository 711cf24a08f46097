# SPDX-License-Identifier: Apache-2.0
"""Ray around longmem: worker pools, store actors, joining a cluster. Holds no tensor arithmetic."""
