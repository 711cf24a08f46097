# SPDX-License-Identifier: Apache-2.0
"""Interruption at any moment: one line and exit code 130, after cleanup where needed."""

import os
import signal
import subprocess
import sys
import textwrap
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console

from pipelines.command.command_line import exit_codes
from pipelines.command.interrupts import LINE, held_interrupts

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_held_interrupts_notes_the_first_and_raises_at_the_second(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with held_interrupts() as is_interrupted:
        assert not is_interrupted()
        signal.raise_signal(number)
        assert is_interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_handlers_return_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), held_interrupts():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def run(code: str, folder: Path, *, ignored: signal.Signals | None = None) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a process that has installed the signal handlers."""
    start = """
        import os, signal, sys, time
        from pipelines.command import interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.take_over()
        def interrupt(number=signal.SIGINT):
            signal.raise_signal(number)
    """
    if ignored is not None:
        start = f"import signal; signal.signal({int(ignored)}, signal.SIG_IGN)\n" + textwrap.dedent(start)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_process_with_nothing_to_tidy(number: signal.Signals, tmp_path: Path) -> None:
    assert run(f"interrupt({int(number)}); print('went on')", tmp_path) == (130, "", f"{LINE}\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_within_tidying_is_a_keyboard_interrupt(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
    try:
        with interrupts.tidying():
            interrupt({int(number)})
    except KeyboardInterrupt:
        interrupt()  # comes with the first one
        print("tidied")
        interrupts.say_interrupted(print, "Go on with --resume")
    """
    assert run(code, tmp_path) == (0, f"tidied\n{LINE} Go on with --resume\n", "")


def test_an_interruption_of_undivided_statements_comes_after_them(tmp_path: Path) -> None:
    code = """
    done = []
    try:
        with interrupts.tidying():
            with interrupts.undivided():
                interrupt()
                done.append("both")
            time.sleep(20)
            done.append("went on")
    except KeyboardInterrupt:
        print(*done)
    """
    assert run(code, tmp_path) == (0, "both\n", "")


@pytest.mark.parametrize("dropped", ["Dropped()", "os.fork() or os._exit(0)"])
def test_interruption_where_python_drops_exceptions_comes_again(dropped: str, tmp_path: Path) -> None:
    """Check destructors and callbacks around `fork`, where Python drops exceptions and a command ignored Ctrl-C."""
    code = f"""
    class Dropped:
        def __del__(self):
            interrupt()
    os.register_at_fork(before=interrupt)
    try:
        with interrupts.tidying():
            {dropped}
            time.sleep(20)
            print("went on")
    except KeyboardInterrupt:
        print("tidied")
    """
    assert run(code, tmp_path) == (0, "tidied\n", "")


def test_interruption_at_the_start_of_a_process_waits_until_it_has_started(tmp_path: Path) -> None:
    """Check process start: libraries hold locks from the callback before a fork to the one after it."""
    code = """
    import subprocess
    done = []
    os.register_at_fork(before=interrupt)
    os.register_at_fork(before=lambda: done.append("before"), after_in_parent=lambda: done.append("after"))
    try:
        with interrupts.tidying():
            subprocess.run(["true"], preexec_fn=lambda: None)
            time.sleep(20)
            print("went on")
    except KeyboardInterrupt:
        print(*done)
    """
    assert run(code, tmp_path) == (0, "before after\n", "")


def test_a_second_signal_ends_the_tidying(tmp_path: Path) -> None:
    code = """
    try:
        with interrupts.tidying():
            try:
                interrupt()
            finally:
                time.sleep(interrupts.SAME_S + 0.1)
                interrupt(signal.SIGTERM)
    finally:
        print("went on")
    """
    assert run(code, tmp_path) == (130, "", f"{LINE}\n")


def test_a_signal_during_an_import_waits_for_its_end(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "import signal, time\ntry:\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(0.1)\n"
        "except BaseException:\n    raise ImportError('half of an extension module') from None\ndone = True\n"
    )
    code = """
    try:
        with interrupts.tidying():
            import heavy
            assert heavy.done
            time.sleep(10)
    except KeyboardInterrupt:
        print("tidied")
    """
    assert run(code, tmp_path) == (0, "tidied\n", "")
    assert run("import heavy", tmp_path) == (130, "", f"{LINE}\n")


def test_a_signal_while_threads_are_waited_for_at_the_end(tmp_path: Path) -> None:
    code = """
    from concurrent.futures import ThreadPoolExecutor
    from threading import Timer
    Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    ThreadPoolExecutor(1).submit(time.sleep, 5)
    """
    assert run(code, tmp_path) == (130, "", f"{LINE}\n")


def test_a_signal_after_all_that_runs_at_exit_changes_nothing(tmp_path: Path) -> None:
    code = """
    class Late:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
    sys.late = Late()
    print("done")
    """
    assert run(code, tmp_path) == (0, "done\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_parent_ignores_stays_ignored(number: signal.Signals, tmp_path: Path) -> None:
    """Check `nohup longmem …`, and a background job of a shell script."""
    code = f"interrupt({int(number)}); print('went on')"
    if number == signal.SIGINT:
        code = "signal.signal(signal.SIGINT, signal.SIG_IGN); interrupts.take_over()\n" + code
    assert run(code, tmp_path, ignored=number) == (0, "went on\n", "")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ((), "The job had not begun, so there is nothing to continue: give the command again."),
        (("job.lock",), "The job had not begun"),
        (("job.json", "log.jsonl"), "What was done is kept. Continue with: longmem resume "),
    ],
)
def test_only_a_job_that_has_begun_can_be_resumed(tmp_path: Path, held: tuple[str, ...], said: str) -> None:
    out = tmp_path / "out"
    if held:
        out.mkdir()
    for name in held:
        (out / name).touch()
    console = Console(file=StringIO(), width=200)
    with pytest.raises(typer.Exit), exit_codes(console, out):
        raise KeyboardInterrupt
    assert f"interrupted. {said}" in console.file.getvalue()  # type: ignore[attr-defined]
