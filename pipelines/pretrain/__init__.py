# SPDX-License-Identifier: Apache-2.0
"""The job behind `longmem pretrain`."""
