"""Interruption: SIGINT (Ctrl-C), SIGTERM (batch systems) and SIGHUP (a closed terminal) end a command in the same way.

Until a command has something to tidy up, the process ends at once: one line, exit code 130. Within `tidying` the first
signal raises KeyboardInterrupt, so that workers stop and the job says where it is, and a second one ends the process.
Whatever a job writes survives SIGKILL, so ending at once costs nothing but the time of the running task.

Imports nothing but the standard library: `take_over` has to run before the seconds that torch takes to load.
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
"""Signals that come within this time are one: a closed terminal and a batch system send several in a row."""
AGAIN_S = 0.02
"""While a module is imported or a process started, the interruption is tried again so often."""


class _State:
    """State of interruptions in this process; only the main thread, where Python runs handlers, writes to it.

    No dataclass: to import those takes longer than all that is imported here, and Ctrl-C is not handled until then.
    """

    def __init__(self) -> None:
        self.noted_s: float | None = None
        """Monotonic seconds of the last signal; None: there was none."""
        self.told = False
        self.tidying = 0
        """Depth of `tidying` blocks."""


_STATE = _State()


def take_over() -> None:
    """Handle all signals that end a command. A signal that the parent process had ignored (`nohup`, a job in the
    background) stays ignored. Main thread only."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _try_again)
    sys.unraisablehook = _come_again
    # runs last of all that runs at exit: the result is printed, and what is left of the interpreter's end is no place
    # for a handler
    atexit.register(_let_go)


@contextmanager
def tidying() -> Iterator[None]:
    """Within the block an interruption raises KeyboardInterrupt, because there is something to tidy up."""
    _STATE.tidying += 1
    try:
        yield
    finally:
        _STATE.tidying -= 1


def is_interrupted() -> bool:
    """Return whether a signal has come to a process that `take_over` was called in."""
    return _STATE.noted_s is not None


def say_interrupted(say: Callable[[str], None], more: str = "") -> None:
    """Print the one line of an interrupted command through `say`, unless it was printed before."""
    if not _STATE.told:
        _STATE.told = is_interrupted()
        # a terminal that is gone takes no line
        with suppress(OSError):
            say(f"{LINE} {more}".strip())


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block the first signal is only noted: the function that is yielded then says True. A second one
    raises KeyboardInterrupt at once. Main thread only, as all signal handlers."""
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
    """Repeat an interruption that Python could not raise: within a destructor, or a callback around `fork`, which is
    where a start of Ray's processes spends its time, an exception is printed and dropped, and the command would go on.
    """
    if unraisable.exc_type is KeyboardInterrupt and _STATE.noted_s is not None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        return
    sys.__unraisablehook__(unraisable)


def _try_again(_number: int, frame: FrameType | None) -> None:
    _raise_where_it_can_be(frame)


def _raise_where_it_can_be(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not within an import or the start of a process; it comes again when that is over.

    Half of an extension module is turned into an ImportError, or swallows the interruption. Libraries hold locks from
    the callback before a fork to the one after it.
    """
    while frame is not None:
        code = frame.f_code
        # by its name: `subprocess` itself takes too long to import here
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
    """Write nowhere when the terminal is gone: each write would be an error in the middle of the tidying."""
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
