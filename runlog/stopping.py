"""When to save a checkpoint, and how a training ends on a signal: saved, with one line, ready to
resume (docs/runs.md)."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from runlog.terminal import UserError, end_bars, reason

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds: a batch system, a launcher and a terminal may each send the same stop to every process.
ONE_STOP = 1.0
STOPPING = (
    b"\nstopping: this step is finished and saved first; the same signal again ends at once\n"
)
# The signal that asked this process to stop; per process, as signals are.
_requested: list[int] = []
_requested_at: list[float] = []


class Stopped(SystemExit):
    """Raised when a signal has ended a training after a checkpoint. Exit code 128 + the signal's
    number, no traceback."""


def _request_stop(number: int, frame) -> None:
    """The handler: the first signal asks the loop to stop, another one at least a second later ends
    the process."""
    now = time.monotonic()
    if not _requested:
        _requested.append(number)
        _requested_at.append(now)
        if os.isatty(2):
            os.write(2, STOPPING)  # print() may itself be interrupted
    elif now - _requested_at[0] >= ONE_STOP:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _stopped(consequence: str) -> Stopped:
    """Prints one line about the received signal, and returns the exception to raise."""
    name = signal.Signals(_requested[0]).name
    with contextlib.suppress(OSError):  # the terminal may be gone
        end_bars()
        print(f"stopped by {name}{consequence}", file=sys.stderr)
    return Stopped(128 + _requested[0])


def stop_if_requested() -> None:
    """Raises Stopped if a signal has asked to stop; for work that leaves nothing to save."""
    if _requested:
        raise _stopped(": nothing is lost since the last checkpoint; the same command resumes")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """While it is open, SIGINT (Ctrl-C), SIGTERM and SIGHUP let the loop finish its step and save
    (`SaveTimes`).

    A signal that is already ignored stays ignored: `nohup` ignores SIGHUP, a shell ignores SIGINT
    for `command &`. Outside the main thread Python cannot handle signals, and this does nothing.
    Raises Stopped at its end if a signal came too late for the loop, so that nothing more is
    started. The same applies if something fails after a signal: a terminal and a batch system also
    signal the compiler that torch.compile waits for, and other processes started by the training.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _request_stop)
    try:
        yield
        if _requested:
            raise _stopped(": current work is complete, nothing more is started")
    except UserError:
        raise
    except Exception as error:
        if not _requested:
            raise
        raise _stopped(
            f": nothing saved since the last checkpoint ({reason(error)}); the same command resumes"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()
        _requested_at.clear()


class SaveTimes:
    """When a loop saves: at multiples of --checkpoint-frequency, --checkpoint-minutes after the
    last save, at the end, and when a signal asks it to stop.

    start: the step from which training continues. frequency, minutes: 0 disables either.
    """

    def __init__(self, start: int, frequency: int, minutes: float):
        self.frequency = frequency
        self.seconds = 60 * minutes
        self.at_end = False  # whether the latest queried step is the last one of the training
        self.regular = False  # whether a save is due by the step, not by the clock or a signal
        self._step = start
        self._saved_at = time.monotonic()

    def start_from(self, step: int) -> None:
        """Training continues from a different step."""
        self._step = step

    def is_due(self, step: int, at_end: bool) -> bool:
        """Whether to save after `step`. Call it after every step, or after every group of steps
        performed at once."""
        before = self._step
        self._step = step
        self.at_end = at_end
        passed_a_multiple = self.frequency > 0 and step // self.frequency > before // self.frequency
        self.regular = passed_a_multiple or at_end
        by_the_clock = self.seconds > 0 and time.monotonic() - self._saved_at >= self.seconds
        return self.regular or by_the_clock or bool(_requested)

    def done(self, runs: Sequence, at_end: bool) -> None:
        """To be called after all these runs are saved. Raises Stopped if a signal has asked to
        stop, except at the training's end."""
        self._saved_at = time.monotonic()
        if not _requested or at_end:
            return
        saved = (
            f"{runs[0].folder}" if len(runs) == 1 else f"{len(runs)} runs such as {runs[0].folder}"
        )
        raise _stopped(f" at step {self._step}, saved: {saved}; the same command resumes")
