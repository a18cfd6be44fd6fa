"""A run's folder: identity, command line, rows, checkpoints, and the TensorBoard and W&B mirrors
(docs/runs.md).

One run = one seed = one folder `<root>/<env>__<script>__<activation>__s<seed>__<hash>`. Its
`scalars.csv` is the source of every figure. A run killed at any moment resumes from its newest good
checkpoint and ends with the same rows.

Here are the names that every script uses; the others are in the modules of their subjects:

    cli, identity, memory     flags: parsing, checks, which of them make another run, what fits
    opening                   the runs that flags mean, and opening them
    batch, report             the runs that train together: rows, checkpoints, divergence, the end
    run                       one run's folder, in parts: lock, append_only, checkpoints, meta
    functions                 whether an activation is still the function that a run knows
    seeding                   generators and noise with a seed axis
    seed_by_seed              compiled updates on the CPU, each seed on a core of its own
    cudagraphs, transfer      replaying an update on a GPU; arrays on their way to the device
    progress, terminal        what a program says; errors in one line
    loading                   a run read from its folder, for notebooks and load_agent
    evaluation, video         what a finished run is measured to be, and shows
    mirrors                   TensorBoard and Weights & Biases
    stopping, divergence      when to save, signals; seeds that have become non-finite
    storage, disk             files that a kill leaves whole; space and checksums
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
