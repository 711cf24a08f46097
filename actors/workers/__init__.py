"""Ray actors that encode, store and read, and their pools."""
