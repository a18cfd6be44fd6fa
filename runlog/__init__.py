"""A run's folder: identity, command line, rows, checkpoints, and the TensorBoard and W&B mirrors
(docs/runs.md).

One run = one seed = one folder `<root>/<env>__<script>__<activation>__s<seed>__<hash>`. Its
`scalars.csv` is the source of every figure. A run killed at any moment resumes from its newest good
checkpoint and ends with the same rows.

This package exports the names that every script uses; the others are in these modules:

    cli, identity, memory     flags: parsing, checks, which of them define a run, memory needs
    opening                   the runs that flags denote, and opening them
    batch, report             the runs that train together: rows, checkpoints, divergence, the end
    run                       one run's folder, in parts: lock, append_only, checkpoints, meta
    functions                 whether an activation is still the function that a run trained with
    seeding                   generators and noise with a seed axis
    seed_by_seed              compiled updates on the CPU, one core per seed
    cudagraphs, transfer      replaying an update on a GPU; uploading arrays to the device
    progress, terminal        what a program prints; errors in one line
    loading                   reading a run from its folder, for notebooks and load_agent
    evaluation, video         measuring and filming a finished run
    mirrors                   TensorBoard and Weights & Biases
    stopping, divergence      when to save, signals; seeds that have become non-finite
    storage, disk             files that stay whole after a kill; space and checksums
    hardware, compiler        devices, versions; what torch.compile needs
"""

from runlog.batch import Batch, restore_module
from runlog.cli import (
    check_flags,
    check_folder,
    check_range,
    errors_are_user_errors,
    parse_args,
    value_errors_are_user_errors,
)
from runlog.hardware import find_device
from runlog.identity import added, option
from runlog.loading import load
from runlog.memory import check_memory
from runlog.opening import open_batches, seed_runs
from runlog.progress import Progress
from runlog.run import Run
from runlog.terminal import UserError, exit_on_user_error, warn

__all__ = [
    "Batch",
    "Progress",
    "Run",
    "UserError",
    "added",
    "check_flags",
    "check_folder",
    "check_memory",
    "check_range",
    "errors_are_user_errors",
    "exit_on_user_error",
    "find_device",
    "load",
    "open_batches",
    "option",
    "parse_args",
    "restore_module",
    "seed_runs",
    "value_errors_are_user_errors",
    "warn",
]
