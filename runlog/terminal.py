"""What a program prints: one-line errors and warnings, on streams that may be closed, full or not
UTF-8."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from tqdm import tqdm

DEFAULT_COLUMNS = 80  # for a terminal of unknown width
_warned = set()  # subjects of `warn_once` in this process


class UserError(ValueError):
    """A mistake by the user, or a state of the machine that only the user can change: one line that
    says what to do."""


def say(text: str, file=None) -> None:
    """Prints one line, by default on stdout; a progress bar on the terminal moves below it."""
    file = sys.stdout if file is None else file
    has_bar = bool(getattr(tqdm, "_instances", ()))
    with tqdm.external_write_mode(file=file) if has_bar else contextlib.nullcontext():
        print(text, file=file, flush=True)


def columns(stream) -> int:
    """The width of the terminal behind a stream."""
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):  # no terminal, or one that is gone
        found = 0
    return found or DEFAULT_COLUMNS


def end_bars() -> None:
    """Leaves progress bars as they are; the next output starts on a new line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def warn(text: str) -> None:
    """Prints one line `warning: ...` on stderr; does nothing if that cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        say(f"warning: {text}", sys.stderr)


def warn_once(subject: str, text: str) -> None:
    """`warn`, but only for the first problem with `subject` in this process."""
    if subject not in _warned:
        _warned.add(subject)
        warn(text)


class WarnOnce:
    """`warn` for repeated checks: prints each text, or each subject, only once."""

    def __init__(self):
        self._reported = set()

    def __call__(self, text: str, subject: str | None = None) -> None:
        subject = text if subject is None else subject
        if subject not in self._reported:
            warn(text)
            self._reported.add(subject)


def reason(error: BaseException) -> str:
    """Type and first line of an exception, for the parentheses of a message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].strip(": ")


class _Guarded:
    """A text stream that drops what cannot be written instead of raising an exception. In all other
    respects it behaves like the original stream."""

    def __init__(self, stream, name: str, matters: bool):
        self._stream = stream
        self._name = name
        self._matters = matters

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._losses():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._losses():
            self._stream.flush()

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            cause = getattr(error, "strerror", None) or str(error)
            nobody_reads = getattr(error, "errno", None) == errno.EPIPE
            if self._matters and not nobody_reads:
                raise UserError(
                    f"cannot write to {self._name}: {cause}; send it elsewhere or free some space"
                ) from None
            if self._name == "stdout" and self._stream is not sys.stderr:
                warn_once("stdout", f"cannot write to stdout ({cause}); continuing without it")

    def settle(self) -> None:
        """Discards buffered output that cannot be written; otherwise Python would complain at exit,
        and change the exit code."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, self._stream.fileno())
                os.close(devnull)
                self._stream.flush()


def _opened_nowhere():
    """A stream for one that was closed before Python started. Occupies the free descriptors up to
    2, so that no other file gets them and child processes have them."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    return os.fdopen(descriptor, "w")


@contextlib.contextmanager
def guarded_output(stdout_matters: bool = False) -> Iterator[None]:
    """Makes stdout and stderr never raise: with a closed pipe, a lost terminal or a full disk,
    output is dropped with one warning on stderr. Characters that the terminal cannot show are
    written as escapes.

    stdout_matters: stdout is the purpose of the program; only a reader that has left (`| head`) may
    lose output, and any other failure is a UserError.
    """
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    errors = {}
    guards = []
    for name, stream in before.items():
        if stream is None:
            stream = _opened_nowhere()
        if hasattr(stream, "reconfigure"):
            errors[name] = stream.errors
            stream.reconfigure(errors="backslashreplace")
        guards.append(_Guarded(stream, name, stdout_matters and name == "stdout"))
        setattr(sys, name, guards[-1])
    try:
        yield
    finally:
        for guard in guards:
            guard.settle()
        for name, stream in before.items():
            setattr(sys, name, stream)
            if name in errors and stream is not None and not stream.closed:
                stream.reconfigure(errors=errors[name])


@contextlib.contextmanager
def exit_on_user_error(stdout_matters: bool = False) -> Iterator[None]:
    """Turns a `UserError` into one line `error: ...` on stderr and exit code 2. Context manager or
    decorator.

    Ctrl-C before or after the training (during it, see `runlog.open_batches`) ends with exit code
    130 and no traceback. Inside, output that cannot be written does not end the program; see
    `guarded_output` for this and for stdout_matters.
    """
    with guarded_output(stdout_matters):
        try:
            yield
            sys.stdout.flush()
        except UserError as error:
            end_bars()
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            end_bars()
            raise SystemExit(130) from None
