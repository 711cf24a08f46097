"""Numbers that a reader can reproduce: `python -m benchmarks NAME`, each one command, JSON and a table."""
