"""For every test."""

import signal

import pytest

from runlog import terminal

# Started in the background of a script or by nohup, pytest ignores these, and so would every
# process that it starts: the tests of signals would test nothing. A signal that is handled here has
# its default in a new program.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    """Warnings that are printed once per process are printed once per test."""
    monkeypatch.setattr(terminal, "_warned", set())
