# SPDX-License-Identifier: Apache-2.0
"""Parts of transformers' models that run faster here: attention, linear layers, norms and gated activations."""
