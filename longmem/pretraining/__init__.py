# SPDX-License-Identifier: Apache-2.0
"""Pretraining of a new backbone: tokenizer, corpus, windows and training."""
