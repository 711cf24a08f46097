# SPDX-License-Identifier: Apache-2.0
"""Signal handling: SIGINT (Ctrl-C), SIGTERM (batch systems) and SIGHUP (a closed terminal) end a command.

Outside `tidying` the process ends at once: one line, exit code 130. Within `tidying` the first signal raises
KeyboardInterrupt, so that workers stop and the job writes its status. A second signal ends the process. Everything
that a job writes survives SIGKILL, so an immediate end costs only the time of the running task.

This module imports only the standard library: `take_over` has to run before torch is loaded, which takes seconds.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINE = "interrupted."

SAME_S = 0.5
"""Seconds within which signals count as one: a closed terminal and a batch system send several in a row."""
AGAIN_S = 0.02
"""Interval, in seconds, of retries while an interruption has to wait: see `_raise_where_it_can_be`."""


class _State:
    """Interruption state of this process; only the main thread, where Python runs handlers, writes to it.

    This is no dataclass: importing `dataclasses` takes longer than all imports of this module, and Ctrl-C is not
    handled until then.
    """

    def __init__(self) -> None:
        self.noted_s: float | None = None
        """Monotonic seconds of the last signal; None before the first."""
        self.told = False
        self.tidying = 0
        """Depth of `tidying` blocks."""
        self.undivided = 0
        """Depth of `undivided` blocks."""


_STATE = _State()


def take_over() -> None:
    """Install the handlers of all signals that end a command. Main thread only.

    A signal that the parent process ignored (`nohup`, a background job) stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _try_again)
    sys.unraisablehook = _come_again
    # runs last at exit: the result is printed, and handlers must not run while the interpreter shuts down
    atexit.register(_let_go)


@contextmanager
def tidying() -> Iterator[None]:
    """Raise KeyboardInterrupt for an interruption within the block, so that its clean-up runs."""
    _STATE.tidying += 1
    try:
        yield
    finally:
        _STATE.tidying -= 1


@contextmanager
def undivided() -> Iterator[None]:
    """Delay the KeyboardInterrupt of an interruption within the block until after it.

    For a few statements that belong together, such as a record in a journal and the totals that count it.
    """
    _STATE.undivided += 1
    try:
        yield
    finally:
        _STATE.undivided -= 1


def is_interrupted() -> bool:
    """Return whether a signal has arrived since `take_over` was called."""
    return _STATE.noted_s is not None


def say_interrupted(say: Callable[[str], None], more: str = "") -> None:
    """Print the line of an interrupted command through `say`, unless it was printed before."""
    if not _STATE.told:
        _STATE.told = is_interrupted()
        # fails if the terminal is gone
        with suppress(OSError):
            say(f"{LINE} {more}".strip())


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Record the first signal within the block instead of raising; a second one raises KeyboardInterrupt at once.

    The yielded function returns True once a signal was recorded. Main thread only.
    """
    noted = False

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True
        _release_terminal(number)

    before = {number: signal.signal(number, note) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield lambda: noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted and _handle in before.values():
            _STATE.noted_s = _STATE.noted_s or monotonic()


def _handle(number: int, frame: FrameType | None) -> None:
    if _STATE.noted_s is not None and monotonic() - _STATE.noted_s < SAME_S:
        return
    is_first = _STATE.noted_s is None
    _STATE.noted_s = monotonic()
    _release_terminal(number)
    if not _STATE.tidying or not is_first:
        _end_now()
    _raise_where_it_can_be(frame)


def _come_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeat an interruption that Python could not raise.

    An exception in a destructor, or in a callback around `fork` (where starting Ray spends its time), is printed and
    dropped, so the command would continue.
    """
    if unraisable.exc_type is KeyboardInterrupt and _STATE.noted_s is not None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    sys.__unraisablehook__(unraisable)


def _try_again(_number: int, frame: FrameType | None) -> None:
    _raise_where_it_can_be(frame)


def _raise_where_it_can_be(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; within `undivided`, an import or the start of a process, schedule a retry instead.

    A half-imported extension module raises ImportError or swallows the interruption. Libraries hold locks between their
    callbacks before and after a fork.
    """
    if _STATE.undivided:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    while frame is not None:
        code = frame.f_code
        # compared by name: importing `subprocess` takes too long here
        starts_process = code.co_name == "_execute_child" and code.co_filename.endswith("subprocess.py")
        if starts_process or code.co_filename.startswith("<frozen importlib"):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            return
        frame = frame.f_back
    if _STATE.tidying:
        raise KeyboardInterrupt
    _end_now()


def _end_now() -> NoReturn:
    if not _STATE.told:
        with suppress(OSError):
            os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _release_terminal(number: int) -> None:
    """Redirect terminal descriptors to /dev/null after SIGHUP: each write would raise an error during the clean-up."""
    if number != signal.SIGHUP:
        return
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            if os.isatty(descriptor):
                os.dup2(null, descriptor)
        os.close(null)


def _let_go() -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
