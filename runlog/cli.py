"""The command line: parsing it, and checks of its values. A mistake is one line `error: ...`, before anything is
created (docs/runs.md)."""

import contextlib
import dataclasses
import difflib
import errno
import io
import math
import os
import re
import resource
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import tyro

from runlog.terminal import UserError, reason

LARGEST_COUNT = (
    2**53
)  # float64, which rows and schedules are in, holds every whole number up to here
LARGEST_SEED = 2**63 - 1  # of torch's generators
LONGEST_RUN_NAME = 240  # characters, of a run's folder (runlog.run_name) and of the files in it


def parse_args(cls, argv: Sequence[str] | None = None):
    """Parse the command line into the dataclass `cls` with `tyro.cli`, but tell a mistake in one line.

    argv: arguments without the program's name; None takes `sys.argv[1:]`. Raises SystemExit: 0 after `--help`,
    2 after a mistake, which is printed on stderr as `error: ...`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(cls, args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
    sections = [""]  # tyro draws a box: sections parted by rules
    for line in re.sub(r"\x1b\[[0-9;]*m", "", boxes.getvalue()).splitlines():
        line = line.strip("│ \t")
        if set(line) in (
            {"─"},
            {"-"},
        ):  # without Unicode the box has no sides, and a rule below its title
            sections.append("")
        elif not line.startswith(("╭", "╰")):
            sections[-1] = f"{sections[-1]} {line}".strip()
    if "╭" not in boxes.getvalue():
        del sections[0]
    told = [
        s.replace("Argument helptext:", "expected")
        for s in sections
        if s and not s.startswith("For full help")
    ]
    for value in {"True", "False", "true", "false"} & {
        *argv[1:]
    }:  # tyro only says "Unrecognized options: False"
        flag = argv[argv.index(value) - 1]
        if flag.startswith("--") and value in told[0]:
            told.append(
                f"{flag} is a switch without a value: write {flag}, or --no-{flag[2:]} to turn it off"
            )
    print(
        f"error: {'; '.join(s.rstrip('.') for s in told)} (--help lists every flag)",
        file=sys.stderr,
    )
    raise SystemExit(2)


# ---- single flags ----------------------------------------------------------------------------------


def flag_name(field: str) -> str:
    """`total_timesteps` -> `--total-timesteps`."""
    return f"--{field.replace('_', '-')}"


def check_choice(flag: str, value: str, choices: Collection[str]) -> None:
    """Raises UserError, with the nearest names, unless `value` is one of `choices`."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=3, cutoff=0.3) or sorted(choices)[:3]
        raise UserError(f"{flag} {value}: unknown; did you mean {' or '.join(near)}?")


def _largest(args, field: str) -> int:
    """The greatest whole number that a flag takes; the last seed of a batch counts too."""
    if field != "seed":
        return LARGEST_COUNT
    num_seeds = min(getattr(args, "num_seeds", 1), LARGEST_COUNT)
    return LARGEST_SEED - max(num_seeds - 1, 0)


def check_range(args, interval: str, flags: str) -> None:
    """Raises UserError unless each of these fields (parted by spaces; a number or a tuple of at least one) is finite,
    in `interval`, written as "[1, inf)" or "(0, 1]", and, a whole number, not too large to count with."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for flag in flags.split():
        value = getattr(args, flag)
        numbers = value if isinstance(value, tuple) else (value,)
        for x in numbers or (math.nan,):
            largest = _largest(args, flag)
            if isinstance(x, int) and x > largest and high > largest:
                raise UserError(
                    f"{flag_name(flag)} {value}: must lie in {interval.split(',')[0]}, {largest}]"
                )
            above = x > low if interval[0] == "(" else x >= low
            below = x < high if interval[-1] == ")" else x <= high
            finite = isinstance(x, int) or math.isfinite(x)
            if not (finite and above and below):
                raise UserError(f"{flag_name(flag)} {value}: must lie in {interval}")


@contextlib.contextmanager
def value_errors_are_user_errors() -> Iterator[None]:
    """For calls whose ValueError names a flag already."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


@contextlib.contextmanager
def errors_are_user_errors(what: str, remedy: str) -> Iterator[None]:
    """For libraries that raise whatever they like: one line `what (reason); remedy`."""
    try:
        yield
    except UserError:  # says what to do already
        raise
    except Exception as error:
        raise UserError(f"{what} ({reason(error)}); {remedy}") from error


# ---- all flags of a script ------------------------------------------------------------------------


def _all_fields(args, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """(name, value, default) of every field, those of nested configurations as `rational.form`."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if dataclasses.is_dataclass(value):
            yield from _all_fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, field.default


def check_flags(args, num_runs: int = 1) -> None:
    """What holds for every flag of every script, and so for one that is new: whole numbers that can be counted with,
    finite numbers, no empty or unprintable text, threads and open files that the machine can have, folders that can be
    written. num_runs: folders that are open at a time. Raises UserError (flag, value, remedy); creates nothing."""
    for name, value, default in _all_fields(args):
        flag = flag_name(name)
        for x in value if isinstance(value, tuple) else (value,):
            if isinstance(x, str):
                _check_text(flag, x, default)
            elif isinstance(x, int) and not isinstance(x, bool):
                largest = _largest(args, name)
                if not -LARGEST_COUNT <= x <= largest:
                    raise UserError(f"{flag} {value}: must lie in [{-LARGEST_COUNT}, {largest}]")
            elif isinstance(x, float) and not math.isfinite(x):
                raise UserError(f"{flag} {value}: must be a finite number")
    most_threads = max(64, 8 * (os.cpu_count() or 1))
    for name in ("threads", "env_threads"):
        if getattr(args, name, 0) > most_threads:
            told = f"must lie in [0, {most_threads}] on a machine of {os.cpu_count()} cores"
            raise UserError(
                f"{flag_name(name)} {getattr(args, name)}: {told}; 0 takes as many as are useful"
            )
    check_folder("--runs-dir", args.runs_dir)
    if getattr(args, "out", None) is not None:
        check_folder("--out", args.out)
    _check_open_files(args, num_runs)


def _check_text(flag: str, text: str, default) -> None:
    if not text.strip():
        remedy = (
            "leave the flag out for no name"
            if default is None
            else "leave the flag out for its default"
        )
        raise UserError(f"{flag} {text!r}: is empty; {remedy}")
    if any(ord(character) < 32 for character in text):
        raise UserError(f"{flag} {text!r}: holds a character that cannot be printed; leave it out")


def check_folder(flag: str, folder: str, written: bool = True) -> None:
    """Raises UserError unless `folder` is one, or can be made (and be written to, if `written`). Creates nothing."""
    remedy = "choose a writable folder" if written else "choose a folder"
    problem = None
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(Path(folder, "x" * LONGEST_RUN_NAME))  # a run's folder must fit in as well
        existing = Path(folder).absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            problem = f"{existing} is a file"
        elif written and not os.access(existing, os.W_OK | os.X_OK):
            problem = f"{existing} is not writable"
    except OSError as error:
        problem = error.strerror
        if error.errno == errno.ENAMETOOLONG:
            remedy = f"{remedy} with a shorter name"
    if problem is not None:
        raise UserError(f"{flag} {folder}: {problem}; {remedy}")


def _check_open_files(args, num_runs: int) -> None:
    """A run holds its lock and, with TensorBoard, its event file; its environment's process has pipes. Raises the
    number of files that this process may open as far as the system allows it."""
    files_of_a_run = (
        1 + getattr(args, "tensorboard", False) + 4 * getattr(args, "async_envs", False)
    )
    needed = 256 + num_runs * files_of_a_run  # 256: the libraries' own
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = max((hard - 256) // files_of_a_run, 1)
        told = f"{num_runs} runs at a time need {needed} open files, and the system allows {hard} (ulimit -Hn)"
        raise UserError(
            f"--num-seeds {getattr(args, 'num_seeds', 1)}: {told}; train at most {most} runs at a time"
        )
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
