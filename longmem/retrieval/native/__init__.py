"""The part of the search that is written in C, and how it is built on first use."""
