# SPDX-License-Identifier: Apache-2.0
"""Reader process that reads while writers write and die, and compares with the expected-state file.

    python -m tests.fault.crash.reader URI EXPECTED SEED

It runs until its standard input closes and prints counts as JSON. At the first broken promise it exits with 1 and a
message.
"""

import json
import select
import sys
from collections import Counter
from pathlib import Path
from random import Random
from time import sleep

from longmem.errors import CorruptionError, MissingBlockError
from longmem.store.lance.store import LanceMemoryStore
from tests.fault.crash.blocks import Content, key_of
from tests.fault.crash.checker import content_of
from tests.fault.crash.expected import ExpectedReader, Violation

PACE_S = 0.02
"""Pause in seconds between two reads, which leaves the processor to the writers."""


def main() -> None:
    uri, expected_path, seed = sys.argv[1:]
    random, counts = Random(int(seed)), Counter[str]()
    expected = ExpectedReader(Path(expected_path))
    with LanceMemoryStore(uri) as store:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            expected.catch_up()
            if not expected.possible:
                continue
            document = random.choice(sorted(expected.possible))
            look(store, expected, document, counts)
            sleep(PACE_S)
    print(json.dumps(counts), flush=True)


def look(store: LanceMemoryStore, expected: ExpectedReader, document: str, counts: Counter[str]) -> None:
    """Read a document once. Blocks acknowledged before must exist, unless a removal was sent meanwhile."""
    acknowledged, removals = expected.acknowledged(document), expected.removals[document]
    may_shrink = document in expected.removing
    found: list[Content] = []
    error: Exception | None = None
    key = key_of(document)
    counts["looks"] += 1
    try:
        infos = store.segments(key)
        for info in infos:
            (block,) = store.read(key, info.segment, info.segment + 1)
            expected.catch_up()
            shrunk = may_shrink or expected.removals[document] != removals
            if info.checksum != block.checksum() and not shrunk:
                raise Violation(f"{document}: catalogue says {info}, block has checksum {block.checksum()}")
            found.append(content_of(block, expected, document))
            counts["blocks"] += 1
    except (MissingBlockError, CorruptionError) as raised:
        error = raised
    expected.catch_up()
    if may_shrink or expected.removals[document] != removals:
        counts["raced"] += 1
        if error is not None:
            counts[f"raced_{type(error).__name__}"] += 1
        return
    if error is not None:
        raise Violation(f"{document} was readable, nothing was removed, and now: {error}") from error
    if lost := acknowledged - set(found):
        raise Violation(f"{document}: acknowledged and not visible to a reader: {sorted(lost)}; visible {found}")


if __name__ == "__main__":
    main()
