# SPDX-License-Identifier: Apache-2.0
"""The command line: options, exit codes, interruption, terminal."""
