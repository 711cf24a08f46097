"""What processes use, seen on real ones."""

import subprocess
import sys
import time
from pathlib import Path

from pipelines.processes import Watch, folder_bytes, usage_by_role

SPIN = "import time\nwhile time.process_time() < 0.4: pass\nprint('done', flush=True)\ninput()"


def test_a_child_is_counted_and_so_is_its_work(tmp_path: Path) -> None:
    with Watch(tmp_path / "growing", every_s=0.02) as watch:
        (tmp_path / "growing").mkdir()
        (tmp_path / "growing" / "file").write_bytes(bytes(1000))
        with subprocess.Popen(
            [sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            roles = usage_by_role()
            deadline = time.monotonic() + 20
            while watch.cpu_s < 0.4 and time.monotonic() < deadline:
                time.sleep(0.02)
            child.communicate("\n")
    assert roles["driver"].processes == 1
    assert roles["daemon"].processes == 1
    assert roles["daemon"].cpu_s >= 0.39
    assert watch.cpu_s >= 0.4
    assert watch.resident_bytes > roles["daemon"].resident_bytes > 2**20
    assert watch.folder_bytes == 1000
    assert watch.foreign_cores >= 0


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(bytes(10))
    (tmp_path / "b").write_bytes(bytes(5))
    assert folder_bytes(tmp_path) == 15
    assert folder_bytes(tmp_path / "absent") == 0
