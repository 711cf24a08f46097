"""The frozen backbone: loading, checks, hooks, tokenizer and the map of supported families."""
