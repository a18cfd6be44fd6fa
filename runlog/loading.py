"""Reading a run from its folder: for a notebook, and for `load_agent` of each script
(docs/runs.md).

    run = runlog.load("runs/Pendulum-v1__...__relu__s1__0123456789")
    run.config.learning_rate, run.config.rational.form    # the script's Args
    steps, values = run.scalars["eval/episodic_return"]

Nothing is locked or written, so a run in progress is not disturbed.
"""

import dataclasses
import importlib
import types
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from runlog.checkpoints import Checkpoints
from runlog.cli import errors_are_user_errors
from runlog.functions import check_functions, functions_of
from runlog.meta import Meta
from runlog.storage import Damaged, read_json
from runlog.terminal import UserError

SCALARS = ("scalars.csv", "perf.csv")
IS_RUN = "config.json"  # a folder with this file is a run folder


class Series(NamedTuple):
    """The rows of one key, in the order of training: `plt.plot(*series)` draws them."""

    steps: np.ndarray  # (rows,) int64, environment steps or updates, as the script counts
    values: np.ndarray  # (rows,) float64; nan and infinities as they were logged


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run as its folder was when it was read.

    status: finished, diverged, interrupted, failed or running (also for a killed run).
    config: the script's Args, nested configurations included, with the seed of this run.
    defaulted: the fields of config that are newer than the run; they have their defaults.
    settings: config.json as stored, including settings that Args does not have.
    meta: meta.json, with versions, hardware and times.
    step: of the newest checkpoint; 0 before the first.
    state: content of that checkpoint, tensors on the CPU without a seed axis; None before the
    first.
    scalars: key -> steps and values, of scalars.csv and perf.csv.
    """

    folder: Path
    status: str
    config: Any
    defaulted: tuple[str, ...]
    settings: dict
    meta: dict
    step: int
    state: dict | None
    scalars: dict[str, Series]


def load(folder: str | Path, cls: type | None = None) -> LoadedRun:
    """A run, finished or not: interrupted, in progress, diverged, before its first checkpoint, or
    from an older version of the code.

    cls: the dataclass for `config`. None imports the script named in the run's name (its folder
    must be on sys.path, as it is in the project's folder and after `pip install -e .`) and uses its
    Args. Rows may go beyond `step`: they were logged after the checkpoint. Raises UserError for a
    folder that is not a run folder, a damaged file, checkpoints of which none is good or which a
    later version wrote, a script that cannot be imported, or an activation that is now another
    function.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    meta = Meta(folder).read()
    name = meta.get("name", folder.resolve().name)
    if cls is None:
        cls = _args_of(folder, name)
    problem = f"{folder / IS_RUN}: its settings do not match {cls.__module__}.{cls.__name__}"
    with errors_are_user_errors(problem, "use the version of the code that wrote it (meta.json)"):
        config = from_dict(cls, settings)
    functions = functions_of(settings, getattr(config, "rational", None))
    remedy = "load it where ACTIVATIONS has the original one"
    check_functions(folder, meta, functions, remedy)

    # read the rows after the checkpoint, so that they reach its step
    digest = meta.get("hash", name.rpartition("__")[2])
    checkpoint = Checkpoints(folder, digest).newest()
    scalars = {}
    for file in SCALARS:
        scalars |= read_scalars(folder / file)
    return LoadedRun(
        folder=folder,
        status=meta.get("status", "interrupted"),
        config=config,
        defaulted=tuple(_missing(config, settings)),
        settings=settings,
        meta=meta,
        step=checkpoint["step"] if checkpoint else 0,
        state=checkpoint["state"] if checkpoint else None,
        scalars=scalars,
    )


def weights_of(run: LoadedRun, key: str) -> dict[str, torch.Tensor]:
    """What the checkpoint stores under `key`: the state_dict of a module. Raises UserError if there
    is no checkpoint yet, or no such key in it."""
    if run.state is None:
        problem = f"{run.folder} is {run.status} and has no checkpoint"
        raise UserError(
            f"{problem}; wait for the first (--checkpoint-frequency), or train it further"
        )
    if key not in run.state:
        problem = f"{run.folder}: its checkpoint has no {key!r}, only {', '.join(run.state)}"
        raise UserError(f"{problem}; use load_agent of the script that trained it")
    return run.state[key]


def restore(module: torch.nn.Module, run: LoadedRun, key: str) -> None:
    """Loads what the checkpoint stores under `key` into a module without a seed axis. Raises
    UserError like `weights_of`, and if the module differs from the saved one."""
    problem = f"{run.folder}: its checkpoint does not match {type(module).__name__}"
    with errors_are_user_errors(problem, "use the version of the code that wrote it (meta.json)"):
        module.load_state_dict(weights_of(run, key))


# ---- settings ------------------------------------------------------------------------------------


def _read_settings(folder: Path) -> dict:
    """config.json of a run folder."""
    try:
        settings = read_json(folder / IS_RUN)
    except Damaged as damage:
        raise UserError(f"{damage}; restore it, or train the run again") from None
    if settings:
        return settings
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder of a run")
    inside = sorted(path.parent for path in folder.glob(f"*/{IS_RUN}"))
    if inside:
        problem = f"{folder}: contains {len(inside)} run folders, such as {inside[0]}"
        raise UserError(f"{problem}; give one of them")
    raise UserError(f"{folder}: is not a run folder; give one that contains {IS_RUN}")


def _args_of(folder: Path, name: str) -> type:
    """The Args of the script that trained a run of this name."""
    parts = name.split("__")
    remedy = "pass the Args of its script: runlog.load(folder, Args)"
    if len(parts) != 5:
        problem = f"its name, {name}, does not show which script trained it"
        raise UserError(f"{folder}: {problem}; {remedy}")
    script = parts[1]
    remedy = f"work in its folder, or `pip install -e .` there, or {remedy}"
    with errors_are_user_errors(f"{folder}: cannot import {script}, which trained it", remedy):
        return importlib.import_module(script).Args


def from_dict(cls: type, settings: dict):
    """A dataclass, nested ones included, from the dict stored in config.json. Missing fields get
    their defaults; keys that the class does not have are ignored."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in settings:
            values[field.name] = _of_type(hints[field.name], settings[field.name])
    return cls(**values)


def _of_type(hint, value):
    """A JSON value converted to the field's type."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if is_union else (hint,)
    takes_tuple = any(typing.get_origin(kind) is tuple for kind in kinds)
    if not takes_tuple or value is None:
        return value
    # a sequence of one task is stored as that task (runlog.seed_runs)
    return tuple(value) if isinstance(value, list) else (value,)


def _missing(config, settings: dict, prefix: str = "") -> Iterator[str]:
    """The fields of a dataclass that a dict lacks, those of nested ones as `rational.form`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        if field.name not in settings:
            yield name
        elif dataclasses.is_dataclass(value):
            yield from _missing(value, settings[field.name], f"{name}.")


# ---- scalars -------------------------------------------------------------------------------------


def read_scalars(path: Path) -> dict[str, Series]:
    """key -> rows, of scalars.csv or perf.csv; {} without a file. An incomplete last line of a run
    in progress is ignored. Raises UserError if the file is not readable or a line is malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it") from None
    whole_lines = text[: text.rfind("\n") + 1].splitlines()
    steps = defaultdict(list)
    values = defaultdict(list)
    for number, line in enumerate(whole_lines[1:], 2):
        try:
            step, key, value, _ = line.split(",")
            steps[key].append(int(step))
            values[key].append(float(value))
        except ValueError:
            problem = f"{path}: line {number} is not a row of step, key, value, wall_time"
            raise UserError(f"{problem}: {line[:40]!r}; restore the file") from None
    scalars = {}
    for key, rows in values.items():
        scalars[key] = Series(np.array(steps[key], np.int64), np.array(rows, np.float64))
    return scalars
