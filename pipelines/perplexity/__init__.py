"""The job behind `longmem perplexity`."""
