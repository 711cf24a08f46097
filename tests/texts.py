# SPDX-License-Identifier: Apache-2.0
"""Text that a small model can learn from: words with partly predictable order, and characters of every width."""

import numpy as np

TEXT = "the whale swam round a ship and naïve Ahab — in 1851, 静か — saw its white back; “ho!” he cried 🐋"


def prose(seed: int, words: int) -> str:
    """Return words that each have two possible successors, in lines of about ten words and paragraphs of about five
    lines."""
    random = np.random.default_rng(seed)
    vocabulary = TEXT.split()
    word, parts = 0, []
    for _ in range(words):
        word = (word * 2 + 1 + int(random.random() < 0.3)) % len(vocabulary)
        parts.append(vocabulary[word])
        parts.append(random.choice([" ", "\n", "\n\n"], p=[0.9, 0.08, 0.02]))
    return "".join(parts)
