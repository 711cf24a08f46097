# SPDX-License-Identifier: Apache-2.0
"""Parts of transformers' models that run faster here: attention, rotary positions, linear layers, norms, gates."""
