"""Checks of the command line: one line `error: ...` for a mistake, before anything is created (docs/runs.md)."""

import contextlib
import dataclasses
import difflib
import errno
import math
import os
import re
import resource
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch

import activations
from runlog.terminal import UserError, reason

LARGEST_COUNT = 2**53  # float64, which rows and schedules are in, holds every whole number up to here
LARGEST_SEED = 2**63 - 1  # of torch's generators
FLOAT_BYTES = 4
ADAM_COPIES = 4  # of each trained number: itself, its gradient, and Adam's two moments
NTK_COPIES = 2  # of each sample's gradient: itself, and one while the products are formed
LONGEST_RUN_NAME = 240  # characters, of a run's folder (runlog.run_name) and of the files in it


# ---- single flags ----------------------------------------------------------------------------------------------------


def flag_name(field: str) -> str:
    """`total_timesteps` -> `--total-timesteps`."""
    return f"--{field.replace('_', '-')}"


def find_device(name: str) -> torch.device:
    """The device of `--device name`; "auto" is cuda where there is one. Raises UserError without such a device."""
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(chosen)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        first_sentence = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name}: not on this machine ({first_sentence}); use cpu or auto") from None
    return device


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
                raise UserError(f"{flag_name(flag)} {value}: must lie in {interval.split(',')[0]}, {largest}]")
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


def sequence_length(args):
    """args with the total_timesteps of its sequential tasks env_id: their number times steps_per_task; with one task
    args as it is. Raises UserError: several tasks without steps_per_task, or one with it; another total_timesteps; a
    steps_per_task that is no multiple of eval_frequency; a task without a step after learning_starts."""
    number = len(args.env_id)
    each = args.steps_per_task
    total = args.total_timesteps
    if number <= 1 and each is not None:
        raise UserError(f"--steps-per-task {each}: needs several --env-id; use --total-timesteps {each}")
    if number == 1:
        check_range(args, f"({args.learning_starts}, inf)", "total_timesteps")
        for flag in ("reset_replay", "reset_optimizer"):
            if not getattr(args, flag):
                raise UserError(f"--no-{flag.replace('_', '-')}: needs several --env-id; leave it out")
        return args
    if not number:
        raise UserError("--env-id: is empty; give one id, or several to learn one after the other")
    if each is None:
        raise UserError(f"--env-id {' '.join(args.env_id)}: several tasks need --steps-per-task, for example 100000")
    check_range(args, f"({args.learning_starts}, inf)", "steps_per_task")
    if total not in (type(args).total_timesteps, number * each):  # the default, or right
        told = f"--total-timesteps {total}: {number} tasks of --steps-per-task {each} make {number * each}"
        raise UserError(f"{told}; leave it out")
    if each % args.eval_frequency:  # two evaluations would share their episodes
        raise UserError(f"--steps-per-task {each}: must be a multiple of --eval-frequency {args.eval_frequency}")
    return dataclasses.replace(args, total_timesteps=number * each)


# ---- all flags of a script -------------------------------------------------------------------------------------------


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
            raise UserError(f"{flag_name(name)} {getattr(args, name)}: {told}; 0 takes as many as are useful")
    check_folder("--runs-dir", args.runs_dir)
    if getattr(args, "out", None) is not None:
        check_folder("--out", args.out)
    _check_open_files(args, num_runs)


def _check_text(flag: str, text: str, default) -> None:
    if not text.strip():
        remedy = "leave the flag out for no name" if default is None else "leave the flag out for its default"
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
    files_of_a_run = 1 + getattr(args, "tensorboard", False) + 4 * getattr(args, "async_envs", False)
    needed = 256 + num_runs * files_of_a_run  # 256: the libraries' own
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = max((hard - 256) // files_of_a_run, 1)
        told = f"{num_runs} runs at a time need {needed} open files, and the system allows {hard} (ulimit -Hn)"
        raise UserError(f"--num-seeds {getattr(args, 'num_seeds', 1)}: {told}; train at most {most} runs at a time")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# ---- memory and disk -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class NetworkSize:
    """How many numbers a network holds: its trained parameters, and what one input leaves in its hidden layers (the
    pre-activation and the output of each branch and what joins them, which the backward pass needs)."""

    parameters: int = 0
    activations: int = 0

    def add_layer(
        self, inputs: int, units: int, expression: str, norm: int = 0, kernel: int = 1, pixels: int = 1
    ) -> int:
        """Counts a hidden layer and returns how many features it has (crelu doubles them). inputs: features, each with
        `kernel` weights for each of the units; norm: normalised elements, each with scale and bias; pixels: of an
        image that a convolution makes."""
        terms = activations.parse(expression)
        width = activations.ACTIVATIONS[terms[0][0]].width
        branches = sum(len(product) for product in terms)
        self.parameters += branches * (inputs * kernel * units + units + 2 * norm)
        of_branch = 1 + width  # pre-activation, output
        if norm:
            of_branch += 3  # before the norm, without the mean, normalised
        joined = width if branches * width > 1 else 0  # the product, or the outputs side by side
        self.activations += (branches * of_branch + joined) * units * pixels
        return width * units

    def add_head(self, inputs: int, outputs: int) -> None:
        """Counts a linear layer of outputs."""
        self.parameters += inputs * outputs + outputs
        self.activations += outputs


def mlp_size(inputs: int, widths: Sequence[int], expression: str, outputs: int, layer_norm: bool = False):
    """NetworkSize of `activations.mlp` and a linear layer of outputs."""
    size = NetworkSize()
    for width in widths:
        inputs = size.add_layer(inputs, width, expression, norm=width if layer_norm else 0)
    size.add_head(inputs, outputs)
    return size


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have: of the GPU, or of the machine within the limits of its control groups
    (containers, Slurm); without these the whole memory. None where no system call tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/meminfo").read_text()
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)))
    with contextlib.suppress(OSError):
        found += _left_in_control_groups(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
    if not found:
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _left_in_control_groups(groups: str, root: Path) -> list[int]:
    """What each memory limit leaves: of the groups in /proc/self/cgroup (version 2 and 1) and those around them.
    Cached files that nobody uses count as free."""
    left = []
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top = root
            limit = "memory.max"
            usage = "memory.current"
            cache = "inactive_file"
        elif "memory" in controllers.split(","):
            top = root / "memory"
            limit = "memory.limit_in_bytes"
            usage = "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folder = top / group.lstrip("/")
        while folder.is_relative_to(top):
            with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max"
                statistics = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / usage).read_text()) - int(statistics.get(cache, 0))
                left.append(max(int((folder / limit).read_text()) - used, 0))
            folder = folder.parent
    return left


def bytes_text(number: float) -> str:
    """2_500_000_000 -> "2.5 GB"; powers of 1000."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    power = min(int(math.log(max(number, 1), 1000) + 1e-9), len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"


def _value_text(value) -> str:
    return " ".join(str(x) for x in value) if isinstance(value, tuple) else str(value)


def _over_default(args, field: str) -> float:
    """How many times its default a flag is."""
    value, default = getattr(args, field), getattr(type(args)(), field)
    if isinstance(value, tuple):
        value, default = math.prod(value), math.prod(default)
    return value / max(default, 1)


def check_memory(args, device: torch.device, needs: dict[str, int], on_host: dict[str, int] | None = None) -> None:
    """Raises UserError, which names the flag to lower, if the big tensors of a run do not fit into the memory that is
    available. needs: fields that a part's size depends on, parted by spaces -> bytes on `device`, of all seeds;
    on_host: the same of what is in the machine's memory wherever the network is."""
    places = {device: dict(needs)}
    host = torch.device("cpu")
    for fields, size in (on_host or {}).items():
        parts = places.setdefault(device if device.type == "cpu" else host, {})
        parts[fields] = parts.get(fields, 0) + size
    for place, parts in places.items():
        total, available = sum(parts.values()), available_memory(place)
        if available is None or total <= available:
            continue
        largest = max(parts, key=parts.get)
        field = max(largest.split(), key=lambda name: _over_default(args, name))
        value = _value_text(getattr(args, field))
        where = f"memory of {place}" if place.type == "cuda" else "memory"
        told = f"the run would need about {bytes_text(total)} of {where}, {bytes_text(available)} are available"
        others = [flag_name(name) for name in largest.split() if name != field and _over_default(args, name) > 1]
        alternatives = f" (or {', '.join(others)})" if others else ""
        raise UserError(f"{flag_name(field)} {value}: {told}; lower {flag_name(field)}{alternatives}")


def keep_or_fresh(folder: Path) -> str:
    """The end of a message on a folder that cannot be used as it is: what keeps its files, and what deletes them."""
    away = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{folder}.bak')}"
    return f"to keep its files, move it away ({away}) or choose another --runs-dir; or use --fresh to delete them"
