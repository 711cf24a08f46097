# SPDX-License-Identifier: Apache-2.0
"""Resource usage of processes, measured on real ones."""

import json
import subprocess
import sys
from pathlib import Path

from pipelines.plan.processes import folder_bytes

ROOT = Path(__file__).parents[3]

WATCHED = """
import json, subprocess, sys, time
from pathlib import Path
from pipelines.plan.processes import Watch, usage_by_role

folder = Path(sys.argv[1])
spin = "import time\\nwhile time.process_time() < 0.4: pass\\nprint('done', flush=True)\\ninput()"
with Watch(folder, every_s=0.02) as watch:
    folder.mkdir()
    (folder / "file").write_bytes(bytes(1000))
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    roles = {role: vars(usage) for role, usage in usage_by_role().items()}
    deadline = time.monotonic() + 20
    while watch.cpu_s < 0.4 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.communicate("\\n")
peaks = {name: getattr(watch, name) for name in ("cpu_s", "resident_bytes", "folder_bytes", "foreign_cores")}
print(json.dumps({"roles": roles, **peaks}))
"""


def test_a_child_is_counted_and_so_is_its_work(tmp_path: Path) -> None:
    """Watch from a process of its own, because this one may have the daemons of other tests as children."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "growing")], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    roles = seen["roles"]
    assert roles["driver"]["processes"] == 1
    assert roles["daemon"]["processes"] == 1
    assert roles["daemon"]["cpu_s"] >= 0.39
    assert seen["cpu_s"] >= 0.4
    assert seen["resident_bytes"] > roles["daemon"]["resident_bytes"] > 2**20
    assert seen["folder_bytes"] == 1000
    assert seen["foreign_cores"] >= 0


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(bytes(10))
    (tmp_path / "b").write_bytes(bytes(5))
    assert folder_bytes(tmp_path) == 15
    assert folder_bytes(tmp_path / "absent") == 0
