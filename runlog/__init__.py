# ruff: noqa: F401  (old names, until nothing uses them)
"""A run's folder: identity, command line, rows, checkpoints, and the TensorBoard and W&B mirrors (docs/runs.md).

One run = one seed = one folder `<root>/<env>__<script>__<activation>__s<seed>__<hash>`. Its `scalars.csv` is the source
of every figure. A run killed at any moment resumes from its newest good checkpoint and ends with the same rows.
"""

from runlog.batch import (
    Batch,
    check_machine,
    finish,
    group_by_step,
    open_batches,
    restore_module,
    seed_runs,
    stack,
)
from runlog.cli import (
    check_choice,
    check_flags,
    check_folder,
    check_range,
    errors_are_user_errors,
    flag_name,
    parse_args,
    value_errors_are_user_errors,
)
from runlog.cudagraphs import graphed
from runlog.disk import check_space, reserve, row_checksums, writing
from runlog.divergence import Divergence
from runlog.evaluation import load_finished, record_evaluation
from runlog.hardware import find_device, keep_freed_memory, machine
from runlog.identity import added, config_hash, env_name, identity_of, option, run_name
from runlog.leaving import (
    GAME_BYTES,
    MOST_ACTIONS,
    NOT_IDENTITY,
    OBSERVATION_BYTES,
    NetworkSize,
    carry_forward,
    draw,
    draw_function_approximation,
    finish_diverged,
    log_episodes,
    log_evaluations,
    log_losses,
    log_ntk,
    make_runs,
    mlp_size,
    nature_cnn_size,
    new_episode,
    opened,
    print_network,
    sequence_length,
)
from runlog.memory import ADAM_COPIES, FLOAT_BYTES, NTK_COPIES, bytes_text, check_memory
from runlog.mirrors import SECTIONS
from runlog.progress import Progress, multiples
from runlog.report import log_report
from runlog.run import ENDED, Run, read_meta
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
from runlog.terminal import UserError, exit_on_user_error, reason, warn, warn_once
from runlog.video import save_video, write_video
