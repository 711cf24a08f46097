# SPDX-License-Identifier: Apache-2.0
"""The whole model: backbone, SideNet, settings, saved folders."""
