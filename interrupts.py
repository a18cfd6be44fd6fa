"""The scripts import this first, so that Ctrl-C during the imports of torch and the environments,
which take seconds, prints one line instead of a traceback."""

import sys

_excepthook = sys.excepthook


def _in_one_line(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before anything was started", file=sys.stderr)
    else:
        _excepthook(kind, error, traceback)


sys.excepthook = _in_one_line
