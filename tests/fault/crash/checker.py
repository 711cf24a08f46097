# SPDX-License-Identifier: Apache-2.0
"""Check of a quiet store against the expected-state file."""

from dataclasses import dataclass
from pathlib import Path

from longmem.store.lance.store import LanceMemoryStore
from longmem.types import KVBlock
from tests.fault.crash.blocks import NAMESPACE, Content, foreign_rows, key_of, make_block
from tests.fault.crash.expected import Expected, ExpectedFile, ExpectedReader, Violation

DISK_FACTOR = 6.0
DISK_SLACK_BYTES = 64 * 2**20
"""Slack of the disk limit `factor` × live bytes + slack: payload of deleted blocks that a table still holds, and the
last ten minutes of the catalogue's versions."""


@dataclass(frozen=True)
class Checked:
    """Counts of a check of the whole store."""

    num_documents: int
    num_blocks: int
    live_bytes: int
    disk_bytes: int


def check(uri: str, file: ExpectedFile, disk_factor: float = DISK_FACTOR) -> Checked:
    """Check the store; raises Violation. The store must have no writer now; open outcomes are fixed by what is
    found."""
    expected = ExpectedReader(file.path)
    expected.catch_up()
    expected.close()
    num_blocks = 0
    with LanceMemoryStore(uri) as store:
        visible = {key.document for key in store.documents(NAMESPACE)}
        if unknown := visible - set(expected.possible):
            raise Violation(f"documents that nobody wrote: {sorted(unknown)}")
        for document in sorted(expected.possible):
            contents = _visible(store, expected, document)
            _compare(document, contents, expected)
            if bool(contents) != (document in visible):
                raise Violation(f"{document}: has blocks {contents}, listed {document in visible}")
            file.record_seen(document, contents)
            num_blocks += len(contents)
        if (verified := store.verify()) != num_blocks:
            raise Violation(f"verify() checked {verified} blocks, {num_blocks} are visible")
        live_bytes = store.num_bytes()
    disk_bytes = bytes_on_disk(Path(uri))
    if disk_bytes > disk_factor * live_bytes + DISK_SLACK_BYTES:
        raise Violation(f"disk holds {disk_bytes} bytes for {live_bytes} live ones")
    return Checked(len(visible), num_blocks, live_bytes, disk_bytes)


def content_of(block: KVBlock, expected: Expected, document: str) -> Content:
    """Return which of the contents ever sent for the document equals the block in every byte.

    Raises Violation if none does.
    """
    if str(block.key) != str(key_of(document)):
        raise Violation(f"asked for {document}, got a block of {block.key}")
    checksum = block.checksum()
    for content in expected.ever_sent[document]:
        if content.segment == block.segment and expected.checksums[content] == checksum:
            if wrong := foreign_rows(block, content):
                raise Violation(f"{document} segment {block.segment}: {wrong} rows with another document's stamp")
            return content
    raise Violation(f"{document} segment {block.segment}: bytes that were never sent (checksum {checksum})")


def bytes_on_disk(folder: Path) -> int:
    """Return the allocated bytes of all files; a file that disappears during the scan counts zero."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def _visible(store: LanceMemoryStore, expected: Expected, document: str) -> set[Content]:
    key = key_of(document)
    if doubled := store.doubled(key):
        raise Violation(f"{document}: more than one catalogue row for a segment: {sorted(doubled)}")
    infos = store.segments(key)
    contents: set[Content] = set()
    for info in infos:
        (block,) = store.read(key, info.segment, info.segment + 1)
        content = content_of(block, expected, document)
        whole = make_block(content, document)
        for name in ("start_token", "num_tokens", "num_bytes"):
            if not getattr(info, name) == getattr(block, name) == getattr(whole, name):
                raise Violation(f"{document} segment {info.segment}: {name} of catalogue and block differ: {info}")
        if not info.checksum == block.checksum() == whole.checksum():
            raise Violation(f"{document} segment {info.segment}: checksums of catalogue and block differ")
        contents.add(content)
    return contents


def _compare(document: str, visible: set[Content], expected: Expected) -> None:
    if lost := expected.acknowledged(document) - visible:
        raise Violation(f"{document}: acknowledged and not visible: {sorted(lost)}")
    if extra := visible - expected.sent(document):
        raise Violation(f"{document}: visible and not (or no longer) sent: {sorted(extra)}")
    if frozenset(visible) not in expected.possible[document]:
        raise Violation(f"{document}: half of an operation is visible: {sorted(visible)}")
