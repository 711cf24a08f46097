"""Log-probabilities and continuations of texts."""
