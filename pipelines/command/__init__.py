"""The command line: options, exit codes, interruption, terminal."""
