# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers behind `--track` of the training commands."""
