# SPDX-License-Identifier: Apache-2.0
"""Memory of a segment: windows over the past, views, and the form of keys."""
