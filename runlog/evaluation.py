"""--evaluate: measuring a finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from runlog import mirrors
from runlog.checkpoints import Checkpoints
from runlog.meta import ENDED
from runlog.report import log_report
from runlog.run import Run
from runlog.terminal import UserError, warn
from runlog.video import write_video


def finished_step(run: Run) -> int:
    """The step of the last checkpoint, for --evaluate. Raises UserError if the run has not reached
    its end, has no checkpoint, or has diverged and its checkpoint holds values that are not finite.
    Warns if it has diverged since the checkpoint."""
    newest = None
    status = run.status()
    if status in ENDED:
        newest = Checkpoints(run.folder, run.digest).newest()  # None: diverged before the first
    if status == "new":
        problem = f"--evaluate: {run.folder} does not exist"
        raise UserError(f"{problem}; give the flags of a finished training, and --evaluate")
    if newest is None:
        raise UserError(f"--evaluate: {run.folder} is {status}; train it to the end first")
    step = newest["step"]
    if status == "diverged":
        problem = f"{run.folder} has diverged"
        if not _is_finite(newest):
            raise UserError(f"--evaluate: {problem}; its networks are no longer finite")
        warn(f"{problem} after its last checkpoint, step {step}, which is evaluated")
    return step


def _is_finite(content) -> bool:
    """Whether all tensors in nested containers are finite."""
    if isinstance(content, torch.Tensor):
        return bool(content.isfinite().all())
    if isinstance(content, dict):
        return all(_is_finite(value) for value in content.values())
    if isinstance(content, list | tuple):
        return all(_is_finite(value) for value in content)
    return True


def mirror_video(run: Run, step: int, path: Path) -> None:
    """Adds the video of a finished run to its event files, if it has any; only once, since the same
    checkpoint plays the same episodes."""
    has_events = any(run.folder.glob("events.out.tfevents.*"))
    is_there = any(run.folder.glob(f"events.out.tfevents.*.{path.stem}"))
    if not path.exists() or not has_events or is_there:
        return
    board = mirrors.TensorBoard(run.folder, {}, suffix=f".{path.stem}")
    board.video(step, f"videos/{path.stem.replace(f'-{step}', '')}", path)
    board.flush(step + 1)  # invalidates no earlier events


def record_evaluation(
    run: Run,
    step: int,
    returns: Sequence[float],
    screens,
    prefix: str,
    report,
    draw_plots: Callable,
    **scalars,
) -> None:
    """Stores the results of --evaluate: a video of the first game (RGB screens, 15 per second) in
    the run's `videos/`; mean and standard deviation of the returns, further scalars and a
    NetworkReport in its `evaluation-<step>/`, which is created again and has the files and plots of
    a run's folder. Prints one line. Raises UserError if it is not writable. Without ffmpeg there is
    a warning and no video."""
    name = f"evaluation-{step}"
    again = Run(run.folder, name, run.config, exclude=run.exclude, fresh=True)
    again.open(tensorboard=False)
    mean = float(np.mean(returns))
    std = float(np.std(returns))
    row = {"eval/episodic_return": mean, "eval/episodic_return_std": std}
    again.log(step, row | {"eval/num_games": len(returns)})
    again.log(step, scalars)
    log_report(again, step, prefix, report)
    again.flush()
    again.draw(step, draw_plots)
    again.finish()
    summary = f"seed {run.config['seed']}: return {mean:.1f} +- {std:.1f}"
    summary += f" (standard deviation, {len(returns)} games)"
    video = run.folder / "videos" / f"{name}.mp4"
    if write_video(video, screens, fps=15):
        summary += f"; {video} shows a game with return {returns[0]:.0f}"
        mirror_video(run, step, video)
    print(f"{summary}; metrics: {again.folder}", flush=True)
