"""Ctrl-C waits for the step; a second one does not."""

import signal

import pytest

from pipelines.interrupts import held_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_one_is_noted_and_the_second_ends(number: signal.Signals) -> None:
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
