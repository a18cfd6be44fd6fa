"""The runs that the flags of a script denote, and how a training opens them."""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from runlog import compiler, hardware, mirrors
from runlog.batch import Batch
from runlog.functions import functions_of
from runlog.identity import config_hash, env_name, not_identity, run_name, short_name
from runlog.meta import ENDED
from runlog.run import Run
from runlog.stopping import SaveTimes, Stopped, stop_on_signals
from runlog.terminal import say


def seed_runs(args, script: str, **own) -> list[Run]:
    """The runs of these flags, one for each seed `args.seed`, `args.seed + 1`, ...
    (`args.num_seeds`, if it exists). own: settings that `args` does not have, such as an env_id, or
    that differ from it. Creates nothing."""
    runs = []
    names = {field.name for field in dataclasses.fields(args)}
    changed = {key: value for key, value in own.items() if key in names}
    exclude = not_identity(dataclasses.replace(args, **changed))
    functions = functions_of(vars(args) | own, getattr(args, "rational", None))
    for seed in range(args.seed, args.seed + getattr(args, "num_seeds", 1)):
        config = dataclasses.asdict(dataclasses.replace(args, seed=seed))
        config |= own
        if not isinstance(config["env_id"], str) and len(config["env_id"]) == 1:
            (config["env_id"],) = config["env_id"]  # a sequence of one task is stored as that task
        digest = config_hash(config, exclude)
        parts = (env_name(config["env_id"]), script, config["activation"], seed, digest)
        run = Run(
            args.runs_dir,
            run_name(*parts),
            config,
            exclude=exclude,
            fresh=args.fresh,
            script=script,
            title=short_name(*parts),
            functions=functions,
        )
        runs.append(run)
    return runs


def group_by_step(runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    """Which unfinished runs of a batch can continue together, and from which step: [(step, runs)];
    0 means the beginning.

    The step shared by most runs (the newest of several) forms a group, then the same for the
    remaining runs. Runs that save together always share a step (`Run.stage_checkpoint`), wherever
    in a save they are killed.
    """
    steps = {run: run.checkpoint_steps() or [0] for run in runs}
    groups = []
    while steps:
        sharing = defaultdict(list)
        for run, loadable in steps.items():
            for step in loadable:
                sharing[step].append(run)
        best = max(sharing, key=lambda step: (len(sharing[step]), step))
        groups.append((best, sharing[best]))
        for run in sharing[best]:
            del steps[run]
    return groups


def check_machine(args) -> None:
    """Raises UserError, before anything is created, unless the machine has what --compile and
    --track need (see compiler.py and mirrors.py). `open_batches` calls it if there is something to
    train."""
    if getattr(args, "compile", False):
        compiler.check_compiler(hardware.find_device(args.device))
    if args.track:
        mirrors.check_wandb(args.wandb_project)


def probe_machine(args) -> None:
    """Starts what a compilation will wait for (compiler.probe_early), unless processes will be
    forked in the meantime, such as the workers of --async-envs."""
    if getattr(args, "compile", False) and not getattr(args, "async_envs", False):
        compiler.probe_early(hardware.find_device(args.device))


@contextlib.contextmanager
def open_batches(
    runs: Sequence[Run],
    args,
    *,
    seed_axis: bool = True,
    keep_freed_memory: bool = False,
    sections: mirrors.Sections | None = None,
) -> Iterator[Iterator[Batch]]:
    """Opens the unfinished runs, reports the others, and yields the batches to train, one after the
    other.

    args: has track, wandb_project, wandb_entity, tensorboard, device, checkpoint_frequency,
    checkpoint_minutes and, if the script has it, compile. seed_axis: False for a script that trains
    one seed at a time, whose values have no such axis. keep_freed_memory: see
    hardware.keep_freed_memory. sections: of the dashboards (mirrors.TensorBoard).

    While it is open, a signal lets the loop save and stop (`Batch.save`). Leaving by an exception
    marks the open runs "failed" (by a signal: "interrupted"); both can resume. Raises UserError
    like `check_machine` and `Run.open`, or if an activation of a run is now another function; and
    Stopped.
    """
    if keep_freed_memory:
        hardware.keep_freed_memory()
    for run in runs:
        run.check_functions()
    _report_ended([run for run in runs if run.status() in ENDED])
    unfinished = [run for run in runs if run.status() not in ENDED]
    if unfinished:
        check_machine(args)
        probe_machine(args)
    # On a GPU convolutions would round to 10 bits; matrix products do not.
    torch.backends.cudnn.allow_tf32 = False
    try:
        with stop_on_signals():
            groups = _open_all(unfinished, args, sections)
            yield _batches(groups, args, seed_axis)
    except BaseException as error:
        is_a_stop = isinstance(error, KeyboardInterrupt | Stopped)
        for run in unfinished:
            if is_a_stop:
                run.close()
            else:
                run.fail(f"{type(error).__name__}: {error}")
        raise
    for run in unfinished:  # those that have not been finished
        run.close()


def _report_ended(ended: Sequence[Run]) -> None:
    """Reports which runs need no training, and deletes replay files left by a kill at the end of a
    run."""
    for run in ended:
        run.drop_leftovers()
    if len(ended) > 10:
        print(f"{_named(ended)}: finished or diverged already (--fresh starts them over)")
        return
    for run in ended:
        print(f"{run.folder}: {run.status()} already (--fresh starts it over)", flush=True)


def _open_all(runs: Sequence[Run], args, sections: dict | None) -> list[tuple[int, list[Run]]]:
    """Opens all of these runs or none; returns the result of `group_by_step`."""
    try:
        for run in runs:  # all, before --fresh deletes the first one's files
            run.lock()
        for run in runs:
            run.open(
                tensorboard=args.tensorboard,
                wandb_kwargs=_wandb_kwargs(run, args),
                sections=sections,
            )
        return group_by_step(runs)
    except BaseException:
        for run in runs:
            run.abandon()
        raise


def _wandb_kwargs(run: Run, args) -> dict | None:
    """The arguments of wandb.init; None without --track. The seeds of one setting form a group."""
    if not args.track:
        return None
    setting = config_hash(run.config, (*run.exclude, "seed"))
    group = f"{env_name(run.config['env_id'])} {run.config['activation']} {setting}"
    return {
        "project": args.wandb_project,
        "entity": args.wandb_entity,
        "job_type": run.script,
        "group": group,
    }


def _batches(groups: Sequence[tuple[int, list[Run]]], args, seed_axis: bool) -> Iterator[Batch]:
    """The groups or, without a seed axis, each run separately. A batch is created when its training
    starts, since this also starts the clock of its saves."""
    for step, group in groups:
        for runs in [group] if seed_axis else [[run] for run in group]:
            _report_start(step, runs)
            save_times = SaveTimes(step, args.checkpoint_frequency, args.checkpoint_minutes)
            yield Batch(runs, step, save_times, seed_axis)
            _report_end(runs)


def _report_start(step: int, runs: Sequence[Run]) -> None:
    """Reports which runs are new, and from where the others continue."""
    if step:
        say(f"resuming {_named(runs)} from step {step}")
        return
    new = [run for run in runs if run.status_before == "new"]
    empty = [run for run in runs if run not in new and not run.had_rows]
    dropped = [run for run in runs if run not in new and run.had_rows]
    if new:
        start = "new run in" if len(new) == 1 else f"{len(new)} new runs, such as"
        say(f"{start} {new[0].folder}")
    if empty:
        say(f"{_named(empty)}: stopped before the first checkpoint; starting again from step 0")
    if dropped:
        reason = "stopped before the first checkpoint; the old rows are dropped"
        say(f"{_named(dropped)}: {reason}, starting again from step 0")


def _report_end(runs: Sequence[Run]) -> None:
    """Reports which runs a training has ended."""
    for status in ENDED:
        ended = [run for run in runs if run.status() == status]
        if ended:
            say(f"{status}: {_named(ended)}")


def _named(runs: Sequence[Run]) -> str:
    """The folder of a run, or of the first of several."""
    if len(runs) == 1:
        return str(runs[0].folder)
    return f"{len(runs)} runs such as {runs[0].folder}"
