"""The command line: parsing and checks of values. A mistake prints one line `error: ...` before
anything is created (docs/runs.md)."""

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

from runlog import usage
from runlog.terminal import UserError, reason

# float64, used for rows and schedules, represents every whole number up to here
LARGEST_COUNT = 2**53
LARGEST_SEED = 2**63 - 1  # for torch's generators
FILES_OF_LIBRARIES = 256  # open in a process without any run
WRONG_NUMBER = re.compile(  # as tyro reports it
    r"Error parsing (--\S+): .*?(?:base 10: |to float: |arguments:? |from )\[?('[^\]]*')\]?.*?"
    r"; expected (--\S+ \S+)"
)
LONGEST_RUN_NAME = 240  # characters, for a run's folder (identity.run_name) and its files


def parse_args(cls, argv: Sequence[str] | None = None, description: str | None = None):
    """Parses the command line into the dataclass `cls` with `tyro.cli`; a mistake prints one line.

    argv: arguments without the program's name; None means `sys.argv[1:]`. description: the
    beginning of `--help`; None means the docstring of the module of `cls`. Raises SystemExit: 0
    after `--help` (see usage.py), 2 after a mistake, which is printed on stderr as `error: ...`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _refuse_flags_of_others(cls, argv)
    if {"-h", "--help"} & {*argv} and usage.has_groups(cls):
        print(usage.format_help(cls, Path(sys.argv[0]).name, usage.width()), end="")
        raise SystemExit(0)
    if argv[:1] in (["-h"], ["--help"]):  # tyro would join the lines of the description
        print(usage.wrapped(description or usage.describe(cls) or "", usage.width()))
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(cls, args=argv, description="")
    except SystemExit as stop:
        if not stop.code:
            raise
    problems = []
    for section in _sections_of_boxes(boxes.getvalue()):
        if section and not section.startswith("For full help"):
            # raised by a nested configuration, whose message names the flag
            section = re.sub("^Error parsing [^ :]+: (?=--)", "", section)
            section = section.replace("Argument helptext:", "expected").replace("{None}|", "")
            problems.append(section.rstrip("."))
    problems += _switches_with_a_value(argv, problems[0])
    raise _mistake(_in_plain_words("; ".join(problems)))


def _mistake(message: str) -> SystemExit:
    """Prints a mistake; returns the exception to raise."""
    print(f"error: {message} (--help lists every flag)", file=sys.stderr)
    return SystemExit(2)


def _refuse_flags_of_others(cls, argv: Sequence[str]) -> None:
    """Explains what to do instead of a flag that only other training scripts have."""
    fields = getattr(cls, "__dataclass_fields__", {})
    if "seed" not in fields:  # no training
        return
    is_started = cls.__module__ == "__main__"
    script = Path(sys.argv[0]).name if is_started else f"{cls.__module__}.py"
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    if "--num-seeds" in given and "num_seeds" not in fields:
        several = f"scripts/sweep.py '{script} ... --seed {{1,2}}'"
        problem = f"{script} trains one seed per process; use --seed N, or for several {several}"
        raise _mistake(f"--num-seeds: {problem}")
    if "--evaluate" in given and "evaluate" not in fields:
        problem = f"{script} has no episodes to play; its run folders hold the results"
        raise _mistake(f"--evaluate: {problem}")


def _in_plain_words(message: str) -> str:
    """Rewrites tyro's message about a value that is not a number, without Python's terms: `--utd
    '0.5': must be a whole number; expected --utd INT ...`."""
    found = WRONG_NUMBER.match(message)
    if not found:
        return message
    flag, values, expected = found.groups()
    number = "whole number" if "INT" in expected else "number"
    must = f"must be {number}s" if "', '" in values else f"must be a {number}"
    values = values.replace("', '", "' '")
    return f"{flag} {values}: {must}; expected {expected}{message[found.end() :]}"


def _sections_of_boxes(text: str) -> list[str]:
    """The sections of tyro's message about a mistake: boxes with a title, separated by rules."""
    has_sides = "╭" in text  # without Unicode a box has no sides, and a rule below its title
    sections = [""]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        line = line.strip("│ \t")
        if set(line) in ({"─"}, {"-"}):
            sections.append("")
        elif not line.startswith(("╭", "╰")):
            sections[-1] = f"{sections[-1]} {line}".strip()
    return sections if has_sides else sections[1:]


def _switches_with_a_value(argv: Sequence[str], message: str) -> list[str]:
    """What to write instead of `--compile False`, for which tyro only reports that False is
    unknown."""
    remedies = []
    for value in {"True", "False", "true", "false"} & {*argv[1:]}:
        flag = argv[argv.index(value) - 1]
        if flag.startswith("--") and value in message:
            instead = f"write {flag}, or --no-{flag[2:]} to turn it off"
            remedies.append(f"{flag} is a switch without a value: {instead}")
    return remedies


# ---- single flags --------------------------------------------------------------------------------


def flag_name(field: str) -> str:
    """`total_timesteps` -> `--total-timesteps`."""
    return f"--{field.replace('_', '-')}"


def as_typed(value) -> str:
    """A flag's value as it is typed on the command line.

    >>> as_typed((256, 0))
    '256 0'
    """
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_choice(
    flag: str, value: str, choices: Collection[str], suggested: Collection[str] = ()
) -> None:
    """Raises UserError with the nearest names unless `value` is one of `choices`. suggested: the
    names that the message may suggest, if not all choices are suitable."""
    if value not in choices:
        names = suggested or choices
        near = difflib.get_close_matches(value, names, n=3, cutoff=0.3)
        near = near or sorted(names)[:3]
        raise UserError(f"{flag} {value}: unknown; did you mean {' or '.join(near)}?")


def _largest(args, field: str) -> int:
    """The largest whole number that a flag accepts; for --seed the last seed of the batch
    counts."""
    if field != "seed":
        return LARGEST_COUNT
    num_seeds = min(getattr(args, "num_seeds", 1), LARGEST_COUNT)
    return LARGEST_SEED - max(num_seeds - 1, 0)


def check_range(args, interval: str, flags: str) -> None:
    """Raises UserError unless each of these fields (separated by spaces; each a number or a
    non-empty tuple) is finite, lies in `interval`, written as "[1, inf)" or "(0, 1]", and, if a
    whole number, is not too large to count with."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for field in flags.split():
        value = getattr(args, field)
        if value == ():
            raise UserError(f"{flag_name(field)}: give at least one value")
        rule = f"{flag_name(field)} {as_typed(value)}: must lie in"
        numbers = value if isinstance(value, tuple) else (value,)
        largest = _largest(args, field)
        for x in numbers:
            is_whole = isinstance(x, int)
            if is_whole and x > largest and high > largest:
                raise UserError(f"{rule} {interval.split(',')[0]}, {largest}]")
            above = x > low if interval[0] == "(" else x >= low
            below = x < high if interval[-1] == ")" else x <= high
            finite = is_whole or math.isfinite(x)
            if not (finite and above and below):
                raise UserError(f"{rule} {interval}")


@contextlib.contextmanager
def value_errors_are_user_errors() -> Iterator[None]:
    """For calls whose ValueError already names a flag."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


@contextlib.contextmanager
def errors_are_user_errors(problem: str, remedy: str) -> Iterator[None]:
    """For libraries that raise arbitrary errors: one line `what (reason); remedy`."""
    try:
        yield
    except UserError:  # already says what to do
        raise
    except Exception as error:
        raise UserError(f"{problem} ({reason(error)}); {remedy}") from error


# ---- all flags of a script -----------------------------------------------------------------------


def _all_fields(args, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """(name, value, default) of every field, those of nested configurations as `rational.form`."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if dataclasses.is_dataclass(value):
            yield from _all_fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, field.default


def check_flags(args, num_runs: int = 1, files_per_run: int = 0) -> None:
    """Checks that apply to every flag of every script: whole numbers not too large to count with,
    finite numbers, no empty or unprintable text, numbers of threads and open files that the machine
    supports, writable folders.

    num_runs: folders that are open at the same time. files_per_run: files that the script itself
    holds open for each. Raises UserError (flag, value, remedy); creates nothing.
    """
    for name, value, default in _all_fields(args):
        for x in value if isinstance(value, tuple) else (value,):
            _check_value(args, name, value, x, default)
        if name.endswith("threads"):
            _check_threads(name, value)
    check_folder("--runs-dir", args.runs_dir)
    if getattr(args, "evaluate", False) and args.fresh:
        raise UserError("--fresh: would delete the run that --evaluate plays; leave it out")
    _check_open_files(args, num_runs, files_per_run)


def _check_value(args, name: str, value, x, default) -> None:
    """x: the value, or one of several values."""
    flag = flag_name(name)
    if isinstance(x, str):
        check_text(flag, x, default)
    elif isinstance(x, int) and not isinstance(x, bool):
        largest = _largest(args, name)
        if not -LARGEST_COUNT <= x <= largest:
            rule = f"{flag} {as_typed(value)}: must lie in"
            raise UserError(f"{rule} [{-LARGEST_COUNT}, {largest}]")
    elif isinstance(x, float) and not math.isfinite(x):
        raise UserError(f"{flag} {as_typed(value)}: must be a finite number")


def _check_threads(name: str, number: int) -> None:
    cores = os.cpu_count()
    limit = max(64, 8 * (cores or 1))
    if number > limit:
        rule = f"must lie in [0, {limit}] on a machine of {cores} cores"
        raise UserError(f"{flag_name(name)} {number}: {rule}; 0 chooses a suitable number")


def check_text(flag: str, text: str, default=None) -> None:
    """Raises UserError if the text is empty or cannot be printed on one line."""
    if not text.strip():
        without = "for no name" if default is None else "for its default"
        raise UserError(f"{flag} {text!r}: is empty; leave the flag out {without}")
    if any(ord(character) < 32 for character in text):
        raise UserError(f"{flag} {text!r}: has a character that cannot be printed; leave it out")


def check_folder(flag: str, folder: str, written: bool = True) -> None:
    """Raises UserError unless `folder` is a folder or can be created (and is writable, if
    `written`). Creates nothing."""
    remedy = "choose a writable folder" if written else "choose a folder"
    problem = None
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(Path(folder, "x" * LONGEST_RUN_NAME))  # a run's folder must fit inside
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


def _check_open_files(args, num_runs: int, files_per_run: int) -> None:
    """A run holds its lock and, with TensorBoard, its event file open. Raises the limit of open
    files for this process as far as the system allows."""
    files_per_run += 1 + getattr(args, "tensorboard", False)
    needed = FILES_OF_LIBRARIES + num_runs * files_per_run
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        limit = max((hard - FILES_OF_LIBRARIES) // files_per_run, 1)
        needs = f"{num_runs} runs at a time need {needed} open files"
        problem = f"{needs}, and the system allows {hard} (ulimit -Hn)"
        flag = f"--num-seeds {getattr(args, 'num_seeds', 1)}"
        raise UserError(f"{flag}: {problem}; train at most {limit} runs at a time")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
