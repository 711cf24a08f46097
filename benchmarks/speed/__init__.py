# SPDX-License-Identifier: Apache-2.0
"""Speed benchmarks: the floor, the peers and this project in one run, so that only ratios matter."""
