# SPDX-License-Identifier: Apache-2.0
"""Training of a SideNet, and of a copy head alone."""
