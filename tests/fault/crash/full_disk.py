# SPDX-License-Identifier: Apache-2.0
"""Disk that fills up under a writer, and is freed again."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fault.crash.blocks import make_block
from tests.fault.crash.checker import check
from tests.fault.crash.expected import ExpectedFile, Operation, Violation
from tests.fault.crash.writer import start_writer, tell

DISK_BYTES = 6 * 2**20
BALLAST_BYTES = 3 * 2**20
"""Size of a file that is removed to free the disk."""
MAX_PUTS = 400


class NoSmallDisk(Exception):
    """Missing permission of this process to mount a file system."""


@dataclass(frozen=True)
class FullDisk:
    """Counts of a run on a full disk."""

    stored_before: int
    errors: int
    """Puts that the full disk refused."""
    stored_after: int


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Yield a file system of DISK_BYTES in memory. Raises NoSmallDisk."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        raise NoSmallDisk(mounted.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_and_free(folder: Path, extra_errors: int = 3) -> FullDisk:
    """Write until the disk is full and a few times more, check; free it, write on, check.

    Every refusal must be reported as a full disk and leave all stored blocks unchanged. Raises Violation, NoSmallDisk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected = ExpectedFile(folder / "expected.jsonl")
    with small_disk(folder / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(BALLAST_BYTES))
        uri = str(disk / "memory.lance")
        counts: Counter[str] = Counter()
        with start_writer(uri) as child:
            while counts["errors"] < extra_errors:
                if counts["stored"] + counts["errors"] >= MAX_PUTS:
                    raise Violation(f"{counts} puts of a disk of {DISK_BYTES} bytes, and it is not full")
                # retry the refused block, like a pipeline
                operation = _put(expected, counts["stored"])
                expected.record_sent(operation)
                answer = tell(child, operation)
                if "error" not in answer:
                    expected.record_acked(operation, answer)
                    counts["stored"] += 1
                    continue
                expected.record_failed(operation, answer["error"])
                if "the disk is full" not in answer["error"]:
                    raise Violation(f"a full disk was told as {answer['error']}")
                counts["errors"] += 1
        full = check(uri, expected)
        if full.num_blocks < counts["stored"]:
            raise Violation(f"{counts['stored']} blocks were acknowledged, {full.num_blocks} are visible")
        ballast.unlink()
        with start_writer(uri) as child:
            for segment in range(counts["stored"], counts["stored"] + 5):
                operation = _put(expected, segment)
                expected.record_sent(operation)
                answer = tell(child, operation)
                if "error" in answer:
                    raise Violation(f"the disk has room again, and {operation} failed: {answer['error']}")
                expected.record_acked(operation, answer)
        freed = check(uri, expected)
    return FullDisk(full.num_blocks, counts["errors"], freed.num_blocks)


def _put(expected: ExpectedFile, segment: int) -> Operation:
    operation = Operation(expected.next_id(), "put", "full", segment, version=1)
    return replace(operation, checksum=make_block(operation.content).checksum())


if __name__ == "__main__":
    print(fill_and_free(Path(sys.argv[1])))
