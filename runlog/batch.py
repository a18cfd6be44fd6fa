"""The runs that train together: what a training loop logs, saves, loads and finishes
(docs/runs.md).

    with runlog.open_batches(runs_of(args), args) as batches:
        for batch in batches:
            train(args, batch)

A batch's values have one entry for each seed, in the order of `batch.seeds`. Every seed has its own
folder and may previously have been trained, or later continue, in another batch or alone.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from runlog.divergence import Divergence
from runlog.report import log_report
from runlog.run import Run
from runlog.stopping import SaveTimes


class Batch:
    """Runs that train together from step `start`. Created by `open_batches`.

    seeds: the seeds of the runs, in the order of all seed axes and lists. folders: of the runs.
    With `seed_axis` False there is one run, and its values have no seed axis.
    """

    def __init__(
        self, runs: Sequence[Run], start: int, save_times: SaveTimes, seed_axis: bool = True
    ):
        if not seed_axis and len(runs) != 1:
            raise ValueError(f"{len(runs)} runs need a seed axis")
        self.runs = list(runs)
        self.start = start
        self.save_times = save_times
        self.seeds = [run.config["seed"] for run in runs]
        self.folders: list[Path] = [run.folder for run in runs]
        self._seed_axis = seed_axis
        self._divergence = Divergence(self.seeds, torch.device("cpu"))

    def settings(self, key: str) -> list:
        """This setting of each run, as stored in config.json."""
        return [run.config[key] for run in self.runs]

    # ---- rows

    def log(self, step: int, values: dict, skip_diverged: bool = False) -> None:
        """Appends to the rows of each run (`Run.log`). values: key -> number, or a tensor, array or
        list with one entry for each seed. skip_diverged: leave out seeds that have diverged."""
        columns = {key: self._column(key, value) for key, value in values.items()}
        rows = []
        for i in range(len(self.runs)):
            rows.append({key: column[i] for key, column in columns.items()})
        self.log_rows(step, rows, skip_diverged)

    def log_rows(
        self, step: int, rows: Sequence[dict[str, float]], skip_diverged: bool = False
    ) -> None:
        """Like `log`, with a dict key -> number for each seed; their keys may differ."""
        left_out = self.diverged() if skip_diverged else [0] * len(self.runs)
        for run, row, is_left_out in zip(self.runs, rows, left_out, strict=True):
            if row and not is_left_out:
                run.log(step, row)

    def log_report(self, step: int, prefix: str, report, skip_diverged: bool = False) -> None:
        """Logs a NetworkReport, or a dict key -> (seeds,) or (seeds, networks) tensor, as
        `<prefix>/<key>`; several networks of a seed (twin critics) as `<prefix>1/<key>`,
        `<prefix>2/<key>`."""
        runs = self.runs if self._seed_axis else self.runs[0]
        log_report(runs, step, prefix, report, self.diverged() if skip_diverged else ())

    def log_curve(self, step: int, key: str, x, y) -> None:
        """Appends a curve of each seed to curves.jsonl. x: (points,), the same for all. y: (seeds,
        points)."""
        if isinstance(y, torch.Tensor):
            y = y.detach().cpu()
        curves = y if self._seed_axis else [y]
        for run, curve in zip(self.runs, curves, strict=True):
            run.log_curve(step, key, x, curve)

    def _column(self, key: str, value) -> list:
        """One value for each seed."""
        if not self._seed_axis or not _has_axis(value):
            return [float(value)] * len(self.runs)
        column = value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else list(value)
        self._check_length(key, column)
        return column

    def _check_length(self, key: str, values) -> None:
        if len(values) != len(self.runs):
            raise ValueError(f"{key}: {len(values)} values for {len(self.runs)} seeds")

    # ---- checkpoints

    def load(self) -> dict | None:
        """What `save` was given at step `start`: key -> list with the value of each seed; None at
        the beginning.

        Tensors are on the CPU. `stack` and `restore_module` reassemble dicts of tensors. Without a
        seed axis: key -> value. Must be called before anything is logged, at the beginning too.
        """
        states = []
        for run in self.runs:
            _, state, _ = run.load_checkpoint(self.start, with_transitions=False)
            states.append(state)
        if states[0] is None:
            return None
        diverged = [state.pop("diverged", 0) for state in states]
        self._divergence.step = torch.tensor(diverged, dtype=torch.int64)
        if not self._seed_axis:
            return states[0]
        loaded = {}
        for key in states[0]:
            if all(key in state for state in states):  # an older version may have saved fewer keys
                loaded[key] = [state[key] for state in states]
        return loaded

    def start_from(self, step: int) -> None:
        """Starts from another step for which the runs have checkpoints, or from 0."""
        self.start = step
        self.save_times.start_from(step)

    def load_transitions(self) -> Iterator[dict[str, torch.Tensor]]:
        """The transitions of each seed, after `load`, as many as `keep_transitions` of `save`
        specified. Yielded one seed at a time, since the memory may not hold two copies of all
        replay buffers."""
        for run in self.runs:
            yield run.read_transitions(self.start)

    def save_is_due(self, step: int, at_end: bool) -> bool:
        """Whether to save after `step`: by --checkpoint-frequency or --checkpoint-minutes, at the
        end, or because a signal has asked to stop. Call it after every step, or after every group
        of steps performed at once."""
        return self.save_times.is_due(step, at_end)

    @property
    def save_is_regular(self) -> bool:
        """Whether the last save was due by its step rather than by the clock, so that other work
        done then is reproducible."""
        return self.save_times.regular

    def save(
        self,
        step: int,
        state: dict,
        transitions: dict | None = None,
        keep_transitions: int | None = None,
    ) -> None:
        """Saves all runs, so that a kill at any moment leaves a step from which all of them can
        resume.

        state: key -> a list with one entry for each seed; a tensor or array whose first axis is the
        seeds; a dict of these; or values that the seeds share: numbers, strings, None, tensors
        without an axis. transitions: key -> (seeds, rows, ...), the replay rows added since the
        last save. keep_transitions: how many of the newest rows a resumed run needs; None keeps
        all. Errors as in `Run.save_checkpoint`. Raises Stopped if a signal has asked to stop.
        """
        diverged = self._divergence.step.tolist()
        for i, run in enumerate(self.runs):
            own_state = self._of_seed(state, i)
            own_state["diverged"] = diverged[i]
            own_transitions = self._of_seed(transitions, i)
            run.stage_checkpoint(step, own_state, own_transitions, keep_transitions)
        for run in self.runs:
            run.commit_checkpoint()
        self.save_times.done(self.runs, self.save_times.at_end)

    def _of_seed(self, value, i: int, where: str = ""):
        """Seed i's part of a value. where: the keys that lead to it, for messages."""
        if isinstance(value, dict):
            parts = {}
            for key, item in value.items():
                parts[key] = self._of_seed(item, i, f"{where}[{key!r}]" if where else key)
            return parts
        if self._seed_axis and _has_axis(value):
            self._check_length(where, value)
            value = value[i]
        if isinstance(value, np.ndarray | np.generic):
            value = torch.as_tensor(value) if value.ndim else value.item()
        return value

    # ---- divergence, pictures, the end

    def note_losses(self, step: int | torch.Tensor, losses: dict[str, torch.Tensor]) -> None:
        """Marks a seed as diverged at the first step at which one of these (seeds,) values is not
        finite. Does not wait for the GPU. The step may be a tensor (seeds,)."""
        by_seed = {}
        for key, value in losses.items():
            by_seed[key] = torch.as_tensor(value).reshape(len(self.runs))
            self._divergence.move_to(by_seed[key].device)
        self._divergence.update(step, by_seed)

    def diverged(self) -> list[int]:
        """The step at which each seed has diverged, 0 if it has not. Waits for the GPU, and prints
        one line on stderr for each newly diverged seed."""
        return self._divergence.report()

    def draw(self, step: int, draw_plots: Callable) -> None:
        """Draws each run's plots (`Run.draw`) if it has new curves. Call it after saving all runs,
        since it takes seconds for each."""
        for run in self.runs:
            run.draw(step, draw_plots)

    def finish(self, keep_replay: bool = False, **extra) -> None:
        """Ends the runs, finished or diverged. keep_replay: keep the transitions on disk. extra:
        keys of meta.json."""
        finish(self.runs, self.diverged(), keep_replay, **extra)


def _has_axis(value) -> bool:
    """Whether a value has entries, either for the seeds or within one seed."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def stack(states: Sequence[dict]) -> dict:
    """Combines dicts of tensors (also nested), one for each seed, into one dict of tensors with a
    leading seed axis."""
    stacked = {}
    for key, first in states[0].items():
        values = [state[key] for state in states]
        stacked[key] = stack(values) if isinstance(first, dict) else torch.stack(values)
    return stacked


@torch.no_grad()
def restore_module(module: torch.nn.Module, states: Sequence[dict[str, torch.Tensor]]) -> None:
    """Restores each seed's part of a module's state_dict, and what its seeds share: tensors without
    an axis, such as the step count of an optimiser."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 0:
            tensor.copy_(states[0][name])
            continue
        for i, state in enumerate(states):
            tensor[i].copy_(state[name])


def finish(runs: Sequence[Run], diverged: Sequence[int], keep_replay: bool, **extra) -> None:
    """Ends runs; diverged: the step at which each diverged, or 0. extra: keys of meta.json.

    meta.json records first that the replay is to be deleted: if the process is killed in between,
    the next one to open the run deletes it.
    """
    extra = extra | {"replay": "kept" if keep_replay else "deleted"}
    for run, step in zip(runs, diverged, strict=True):
        if step:
            run.finish("diverged", step=step, **extra)
        else:
            run.finish(**extra)
        if not keep_replay:
            run.drop_transitions()
