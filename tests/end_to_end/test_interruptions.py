# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, a batch system's kill and a closed terminal, from the first executed line of the command on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LONGMEM = [sys.executable, "-c", "from pipelines.cli import main; main()"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMMANDS = {
    "--help": (0.0, 0.1, 0.4),
    "perplexity nothing.txt --address none": (0.0, 0.05, 0.15, 0.3, 0.6, 1.0, 1.6, 2.4),
}
"""Delays in seconds from the installation of signal handlers: during typer's import, option parsing, torch's import."""


def has_taken_over(pid: int) -> bool:
    """Return True if the process handles SIGTERM, which Python by default does not."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see what a process handles")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_any_moment_gives_one_line_and_130(command: str, tmp_path: Path) -> None:
    arguments = command.split()
    for moment_s, number in zip(COMMANDS[command], SIGNALS * 3, strict=False):
        process = subprocess.Popen(
            [*LONGMEM, *arguments],
            env={**ENVIRONMENT, "PYTHONPATH": str(Path.cwd())},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            restore_signals=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        with process:
            while process.poll() is None and not has_taken_over(process.pid):
                time.sleep(0.001)
            time.sleep(moment_s)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        if process.returncode == 130:
            assert stderr == "interrupted.\n", (moment_s, number)
            assert stdout == "" or arguments == ["--help"]
        else:
            # the process ended earlier; longer delays add no coverage
            assert process.returncode == (0 if arguments == ["--help"] else 2), (moment_s, stderr)
            assert "Traceback" not in stderr
            assert moment_s > 0
            break
    assert list(tmp_path.iterdir()) == []
