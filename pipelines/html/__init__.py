# SPDX-License-Identifier: Apache-2.0
"""HTML pages: templates, styles and charts."""
