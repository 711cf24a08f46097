# SPDX-License-Identifier: Apache-2.0
"""Ray actors that encode, store and read, and their pools."""
