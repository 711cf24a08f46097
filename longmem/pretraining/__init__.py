"""Pretraining of a new backbone: tokenizer, corpus, windows and training."""
