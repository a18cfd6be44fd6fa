"""For every test."""

import contextlib
import signal

import pytest

import runlog
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


@pytest.fixture
def killed_after_save(monkeypatch):
    """`with killed_after_save(step): train()`: a training that is interrupted right after its first
    save, or its first at or after this step."""

    @contextlib.contextmanager
    def context(first: int = 0):
        save = runlog.Batch.save

        def save_and_stop(batch, step, *args, **kwargs):
            save(batch, step, *args, **kwargs)
            if step >= first:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runlog.Batch, "save", save_and_stop)
            yield

    return context
