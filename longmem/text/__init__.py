# SPDX-License-Identifier: Apache-2.0
"""Input texts: finding, reading and naming documents, and cutting them into segments."""
