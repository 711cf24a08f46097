# SPDX-License-Identifier: Apache-2.0
"""C code of search and gather, and its build on first use."""
