# SPDX-License-Identifier: Apache-2.0
"""The frozen backbone: loading, checks, hooks, tokenizer and the map of supported families."""
