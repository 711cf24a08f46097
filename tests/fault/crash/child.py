# SPDX-License-Identifier: Apache-2.0
"""Writer process: reads one JSON operation per line, writes one JSON answer per line.

python -m tests.fault.crash.child URI [--die-at STEP --nth N] [--compact-every N]
"""

import argparse
import json
import os
import signal
import sys
from collections import Counter
from typing import Any

import lancedb  # noqa: F401 - else a new store loads it at its first put, and kills hit that

import longmem.store.lance.writer
from longmem.errors import ConflictError, StoreError
from longmem.store.lance.store import LanceMemoryStore
from tests.fault.crash.blocks import key_of, make_block
from tests.fault.crash.expected import Operation


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--die-at", default="")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--compact-every", type=int, default=8)
    arguments = parser.parse_args()
    assert hasattr(longmem.store.lance.writer, "COMPACT_EVERY"), "the store's period of compaction has another name now"
    longmem.store.lance.writer.COMPACT_EVERY = arguments.compact_every
    reached: Counter[str] = Counter()

    def on_step(step: str) -> None:
        reached[step] += 1
        if step == arguments.die_at and reached[step] == arguments.nth:
            print(json.dumps({"died_at": step}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    with LanceMemoryStore(arguments.uri, on_step) as store:
        print(json.dumps({"ready": os.getpid()}), flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(store, Operation(**json.loads(line)))), flush=True)


def answer(store: LanceMemoryStore, operation: Operation) -> dict[str, Any]:
    key = key_of(operation.document)
    try:
        if operation.kind == "put":
            block = make_block(operation.content)
            assert block.checksum() == operation.checksum, "parent and child make different blocks"
            return {"duplicate": store.put(block).duplicate}
        if operation.kind == "fork":
            return {"count": store.fork(key, key_of(operation.target))}
        if operation.kind == "trim":
            return {"count": store.trim(key, operation.segment)}  # type: ignore[attr-defined]
        return {"count": store.delete(key)}
    except ConflictError as error:
        if operation.kind == "fork":
            return {"refused": str(error)}
        return {"error": f"ConflictError: {error}"}
    except StoreError as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
