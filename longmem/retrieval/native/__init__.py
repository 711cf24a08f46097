"""C code of search and gather, and its build on first use."""
