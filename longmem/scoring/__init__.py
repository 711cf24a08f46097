# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and continuations of texts."""
