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
    seeding, cudagraphs       generators and noise with a seed axis; replaying an update
    progress, terminal        what a program says; errors in one line
    evaluation, video         what a finished run is measured to be, and shows
    mirrors                   TensorBoard and Weights & Biases
    stopping, divergence      when to save, signals; seeds that have become non-finite
    storage, disk             files that a kill leaves whole; space and checksums
    hardware, compiler        devices, versions; what torch.compile needs
"""

from runlog.batch import Batch, restore_module
from runlog.cli import (
    check_choice,
    check_flags,
    check_folder,
    check_range,
    errors_are_user_errors,
    parse_args,
    value_errors_are_user_errors,
)
from runlog.hardware import find_device
from runlog.identity import added, option
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
    "check_choice",
    "check_flags",
    "check_folder",
    "check_memory",
    "check_range",
    "errors_are_user_errors",
    "exit_on_user_error",
    "find_device",
    "open_batches",
    "option",
    "parse_args",
    "restore_module",
    "seed_runs",
    "value_errors_are_user_errors",
    "warn",
]

# ---- old names, until the scripts take them from their modules or no longer use them -------------
# ruff: noqa: F401
from runlog.batch import finish, stack
from runlog.cli import flag_name
from runlog.cudagraphs import graphed
from runlog.disk import check_space, reserve, row_checksums, writing
from runlog.divergence import Divergence
from runlog.evaluation import load_finished, record_evaluation
from runlog.hardware import keep_freed_memory, machine
from runlog.identity import config_hash, env_name, run_name
from runlog.leaving import (
    NOT_IDENTITY,
    NetworkSize,
    carry_forward,
    draw,
    draw_function_approximation,
    finish_diverged,
    log_ntk,
    make_runs,
    mlp_size,
    opened,
    print_network,
)
from runlog.memory import ADAM_COPIES, FLOAT_BYTES, NTK_COPIES, bytes_text
from runlog.meta import ENDED, read_meta
from runlog.opening import check_machine, group_by_step
from runlog.progress import multiples
from runlog.report import log_report
from runlog.seeding import (
    derive_seed,
    derive_seeds,
    get_states,
    make_generator,
    make_generators,
    normals,
    set_states,
)
from runlog.stopping import SaveTimes, stop_on_signals
from runlog.storage import keep_or_fresh
from runlog.terminal import reason, warn_once
from runlog.video import save_video, write_video
