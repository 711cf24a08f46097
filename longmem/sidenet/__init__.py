# SPDX-License-Identifier: Apache-2.0
"""The SideNet: layers, memory readers, memory attention and copy head."""
