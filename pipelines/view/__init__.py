# SPDX-License-Identifier: Apache-2.0
"""The page behind `longmem view`: what each token of a finished job read from memory."""
