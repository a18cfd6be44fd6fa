"""Sequences of tasks that the same networks learn one after the other, and their evaluation
(docs/task_sequences.md). A plain run is a sequence of one task."""

import dataclasses
from collections.abc import Callable, Sequence

import metrics
import runlog
from environments.control import make_envs
from environments.episodes import evaluate
from runlog import identity, progress


@dataclasses.dataclass
class Evaluation:
    """The result of the newest evaluation of a seed. It is stored in checkpoints."""

    # the values of `evaluate` for every task, with additional ones for the current task
    tasks: list[dict[str, float]] = dataclasses.field(default_factory=list)
    bias: dict[str, float] = dataclasses.field(default_factory=dict)
    # with several tasks: [step, score of each task] for every evaluation so far
    history: list[list[float]] = dataclasses.field(default_factory=list)


class TaskSequence:
    """The tasks of a run, their environments, and the results of their latest evaluation.

    Task k (0, 1, ...) is trained in the steps (k T, (k + 1) T], T = task_steps. envs: one training
    environment per seed, for the task `current`. eval_envs: env_id -> environments, for every task.
    newest: an Evaluation per seed.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        seeds: Sequence[int],
        total_steps: int,
        start: int = 0,
        workers: bool = False,
    ):
        """total_steps: for all tasks together. start: step from which training continues. workers:
        see make_envs."""
        self.env_ids = list(env_ids)
        self.name = identity.env_name(env_ids)
        self.seeds = seeds
        self.task_steps = total_steps // len(env_ids)
        self.workers = workers
        self.current = self.task_at(min(start + 1, total_steps))
        self.envs = self._make_training_envs()
        self.eval_envs = {}
        for env_id in self.env_ids:
            if env_id not in self.eval_envs:
                self.eval_envs[env_id] = make_envs(env_id, seeds, "eval", workers)
        self.newest = [Evaluation() for _ in seeds]

    def _make_training_envs(self):
        # training episodes differ from task to task, even if a task is repeated
        stream = "train" if self.current == 0 else f"train{self.current + 1}"
        return make_envs(self.env_ids[self.current], self.seeds, stream, self.workers)

    def task_at(self, step: int) -> int:
        """The task that is trained at `step`."""
        return (step - 1) // self.task_steps

    def ends_at(self, step: int) -> bool:
        """Whether `step` is the last of a task."""
        return step % self.task_steps == 0

    def begin_next(self) -> None:
        """Replaces the training environments by those of the next task."""
        self.envs.close()
        self.current += 1
        self.envs = self._make_training_envs()

    @property
    def env_id(self) -> str:
        """Id of the current task."""
        return self.env_ids[self.current]

    @property
    def label(self) -> str:
        """The current task as named in printed lines, "task 2 (push-v3)"; "" if it is the only
        one."""
        if len(self.env_ids) == 1:
            return ""
        return f"task {self.current + 1} ({self.env_id.rpartition('/')[2]})"

    def current_eval_envs(self):
        return self.eval_envs[self.env_id]

    def evaluate(self, act: Callable, first: int, number: int) -> list[list[dict[str, float]]]:
        """environments.evaluate for every task, in order; a repeated task is played once."""
        results = {}
        for env_id, envs in self.eval_envs.items():
            results[env_id] = evaluate(envs, act, first, number)
        return [results[env_id] for env_id in self.env_ids]

    def log(
        self,
        batch: runlog.Batch,
        step: int,
        returns: list[list[dict]],
        biases: list[dict] | None = None,
    ) -> list[dict[str, float]]:
        """Logs a new evaluation: returns in the form of `evaluate`; biases, further values of the
        current task for each seed. For a diverged seed the last values are carried forward. Returns
        the rows."""
        diverged = batch.diverged()
        for i, newest in enumerate(self.newest):
            if not diverged[i]:
                newest.tasks = [of_task[i] for of_task in returns]
                newest.bias = {} if biases is None else biases[i]
        return self._log_newest(batch, step)

    def carry_forward(self, batch: runlog.Batch, step: int, end: int, frequency: int) -> None:
        """If all seeds have diverged at `step`: logs the newest evaluations again at every
        remaining evaluation, every `frequency` steps and at the end of each task."""
        for later in progress.multiples(step, end, frequency, self.task_steps):
            self._log_newest(batch, later)

    def _log_newest(self, batch: runlog.Batch, step: int) -> list[dict[str, float]]:
        """Logs the values of the current task and, with several tasks, those of each task, with
        plasticity and forgetting (metrics.sequence_scores) of the success rate or, without one, of
        the return. Returns {} before the first evaluation."""
        rows = []
        for newest in self.newest:
            row = {}
            if newest.tasks:
                row |= newest.tasks[self.task_at(step)] | newest.bias
            if len(newest.tasks) > 1:
                row |= self._rows_of_tasks(step, newest)
            rows.append(row)
        batch.log_rows(step, rows)
        return rows

    def _rows_of_tasks(self, step: int, newest: Evaluation) -> dict[str, float]:
        row = {}
        scores = []
        for k, values in enumerate(newest.tasks, 1):
            for key, value in values.items():
                row[f"eval/task{k}/{key.removeprefix('eval/')}"] = value
            scores.append(values.get("eval/success", values["eval/episodic_return"]))
        newest.history.append([step, *scores])
        return row | metrics.sequence_scores(newest.history, self.task_steps)

    def state(self) -> list[dict]:
        """The newest evaluation of each seed, for a checkpoint."""
        return [dataclasses.asdict(newest) for newest in self.newest]

    def restore(self, states: list[dict]) -> None:
        self.newest = [Evaluation(**state) for state in states]

    def close(self) -> None:
        self.envs.close()
        for envs in self.eval_envs.values():
            envs.close()


def sequence_length(args):
    """args with total_timesteps set for its sequential tasks env_id: their number times
    steps_per_task; with one task args are unchanged. Raises UserError for several tasks without
    steps_per_task, one task with it, a contradictory total_timesteps, a steps_per_task that is not
    a multiple of eval_frequency, or a task without a step after learning_starts."""
    number = len(args.env_id)
    steps_per_task = args.steps_per_task
    total = args.total_timesteps
    if not number:
        remedy = "give one id, or several to learn one after the other"
        raise runlog.UserError(f"--env-id: is empty; {remedy}")
    if number == 1:
        return _check_single_task(args)
    if steps_per_task is None:
        problem = f"--env-id {' '.join(args.env_id)}: several tasks need --steps-per-task"
        raise runlog.UserError(f"{problem}, for example 100000")
    runlog.check_range(args, f"({args.learning_starts}, inf)", "steps_per_task")
    if total not in (type(args).total_timesteps, number * steps_per_task):  # the default, or right
        needed = number * steps_per_task
        problem = f"{number} tasks of --steps-per-task {steps_per_task} make {needed}"
        raise runlog.UserError(f"--total-timesteps {total}: {problem}; leave it out")
    if steps_per_task % args.eval_frequency:
        # two evaluations would share their episodes
        remedy = f"must be a multiple of --eval-frequency {args.eval_frequency}"
        raise runlog.UserError(f"--steps-per-task {steps_per_task}: {remedy}")
    return dataclasses.replace(args, total_timesteps=number * steps_per_task)


def _check_single_task(args):
    steps_per_task = args.steps_per_task
    if steps_per_task is not None:
        runlog.check_range(args, "[1, inf)", "steps_per_task")
        remedy = f"needs several --env-id; use --total-timesteps {steps_per_task}"
        raise runlog.UserError(f"--steps-per-task {steps_per_task}: {remedy}")
    runlog.check_range(args, f"({args.learning_starts}, inf)", "total_timesteps")
    for flag in ("reset_replay", "reset_optimizer"):
        if not getattr(args, flag):
            problem = "needs several --env-id; leave it out"
            raise runlog.UserError(f"--no-{flag.replace('_', '-')}: {problem}")
    return args
