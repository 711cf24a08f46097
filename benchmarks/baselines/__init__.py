"""Other ways to read a long document with the same backbone and the same tokens: one small file each."""
