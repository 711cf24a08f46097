# SPDX-License-Identifier: Apache-2.0
"""Prediction of time, memory and disk of a job (`longmem plan`)."""
