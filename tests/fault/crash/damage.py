# SPDX-License-Identifier: Apache-2.0
"""Damages one file of a store's copy and checks that the damage is reported or has no effect.

python -m tests.fault.crash.damage EXPECTED STORE...     one verdict per store, as JSON lines
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from longmem.errors import LongMemError
from longmem.store.lance.store import LanceMemoryStore
from tests.fault.crash.blocks import NAMESPACE, Content, key_of
from tests.fault.crash.checker import content_of
from tests.fault.crash.expected import ExpectedReader, Violation

ROOT = Path(__file__).parents[3]
HOW = ("flip", "truncate", "zero", "remove")


@dataclass(frozen=True)
class Damage:
    """Damage of one file of a store, and its outcome."""

    file: str
    how: str
    place: int
    """Byte offset of a flip, or length after a truncation."""
    verdict: str = ""
    """Outcome: intact (every block unchanged), told (a LongMemError, and every readable block unchanged), lost (a block
    is missing without an error), wrong (other bytes), crashed (the process died)."""
    detail: str = ""


def damaged_copies(store: Path, folder: Path, random: Random, count: int) -> list[tuple[Path, Damage]]:
    """Yield copies of the store with one damaged file each."""
    files = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file() and path.stat().st_size)
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(f"{path.parts[0][:2]}/{path.parent.name}", []).append(path)
    copies = []
    for number in range(count):
        # cycle through the kinds of files: the few manifests matter as much as the many data files
        group = groups[sorted(groups)[number % len(groups)]]
        # only the newest are read
        path = random.choice(sorted(group, key=lambda each: (store / each).stat().st_mtime)[-3:])
        copy = folder / f"damaged-{number}.lance"
        shutil.copytree(store, copy)
        copies.append((copy, _damage(copy, path, random)))
    return copies


def _damage(store: Path, path: Path, random: Random) -> Damage:
    how = random.choice(HOW)
    data = bytearray((store / path).read_bytes())
    place = random.randrange(len(data))
    if how == "flip":
        data[place] ^= 1 << random.randrange(8)
    elif how == "truncate":
        data = data[:place]
    elif how == "zero":
        data = bytearray(len(data))
    if how == "remove":
        (store / path).unlink()
    else:
        (store / path).write_bytes(data)
    return Damage(str(path), how, place)


def judge(expected: Path, copies: list[tuple[Path, Damage]]) -> Iterator[Damage]:
    """Yield each damage with its verdict. Another process inspects the copies, because damage may end it."""
    waiting = list(copies)
    while waiting:
        arguments = [str(copy) for copy, _ in waiting]
        found = subprocess.run(
            [sys.executable, "-m", "tests.fault.crash.damage", str(expected), *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=300,
        )
        verdicts = [json.loads(line) for line in found.stdout.splitlines()]
        for (_, damage), (verdict, detail) in zip(waiting, verdicts, strict=False):
            yield Damage(damage.file, damage.how, damage.place, verdict, detail)
        if len(verdicts) < len(waiting):
            damage = waiting[len(verdicts)][1]
            yield Damage(damage.file, damage.how, damage.place, "crashed", f"{found.returncode}: {found.stderr[-500:]}")
        waiting = waiting[len(verdicts) + 1 :]


def look(uri: str, expected: ExpectedReader) -> tuple[str, str]:
    """Return verdict and detail of one store without a writer."""
    told: list[str] = []
    lost: list[Content] = []
    try:
        with LanceMemoryStore(uri) as store:
            try:
                store.documents(NAMESPACE)
            except LongMemError as error:
                told.append(f"documents: {type(error).__name__}: {error}")
            for document in sorted(expected.possible):
                key, visible = key_of(document), set()
                try:
                    for info in store.segments(key):
                        (block,) = store.read(key, info.segment, info.segment + 1)
                        visible.add(content_of(block, expected, document))
                except LongMemError as error:
                    told.append(f"{document}: {type(error).__name__}: {error}")
                    continue
                if extra := visible - expected.sent(document):
                    return "wrong", f"{document}: {sorted(extra)}"
                lost += expected.acknowledged(document) - visible
            try:
                store.verify()
            except LongMemError as error:
                told.append(f"verify: {type(error).__name__}: {error}")
    except LongMemError as error:
        told.append(f"open: {type(error).__name__}: {error}")
    except Violation as violation:
        return "wrong", str(violation)
    if lost and not told:
        return "lost", str(sorted(lost))
    return ("told", told[0]) if told else ("intact", "")


def main() -> None:
    expected = ExpectedReader(Path(sys.argv[1]))
    expected.catch_up()
    for uri in sys.argv[2:]:
        print(json.dumps(look(uri, expected)), flush=True)


if __name__ == "__main__":
    main()
