"""TensorBoard with run names that are short and begin with the activation:

    python scripts/tensorboard_runs.py                        # of all runs below runs/
    python scripts/tensorboard_runs.py --runs runs/demo runs/smoke --port 6007

`tensorboard --logdir runs` shows the same runs under the names of their folders, which begin with
the environment. Here TensorBoard reads a temporary folder of links to them, such as
"crational cartpole-swingup sac s1 3f1c52"; runs that start later are added. docs/dashboards.md.
"""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import runlog
from runlog import identity, storage
from runlog.terminal import reason

SECONDS = 10.0  # between looks for new runs


@dataclasses.dataclass
class Args:
    runs: tuple[Path, ...] = (Path("runs"),)  # folders that hold runs, at any depth
    port: int = 6006  # of the page
    bind_all: bool = False  # also show the page to other machines


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or below this one that have event files, by name."""
    found = set()
    for path in folder.glob("**/events.out.tfevents.*"):
        if (path.parent / "config.json").exists():
            found.add(path.parent)
    return sorted(found)


def link_name(run: Path, top: Path) -> str:
    """The short name of a run, with that of its own folder if it is not directly in `top`.
    A folder whose name or configuration is not that of a run keeps its name."""
    parts = run.name.split("__")
    where = run.parent.relative_to(top) if run != top else Path()
    try:
        config = storage.read_json(run / "config.json")
        env_id = identity.env_name(config["env_id"])
        name = identity.short_name(
            env_id, parts[1], config["activation"], config["seed"], parts[-1]
        )
    except (storage.Damaged, runlog.UserError, KeyError, IndexError, TypeError, AttributeError):
        name = run.name
    if where != Path():
        name = f"{name} ({where})"
    return name.replace("/", "-")


def link_runs(tops: Sequence[Path], links: Path) -> int:
    """Makes a link in the folder `links` to each run that has none yet; returns the number of all
    runs."""
    number = 0
    for top in tops:
        for run in find_runs(top):
            name = link_name(run, top)
            link = links / name
            if link.is_symlink() and link.resolve() != run.resolve():  # of another top
                link = links / f"{name} ({str(top).replace('/', '-')})"
            if not link.is_symlink():
                link.symlink_to(run.resolve(), target_is_directory=True)
            number += 1
    return number


def check(args: Args) -> None:
    """Raises UserError: a folder is missing; none has event files."""
    for folder in args.runs:
        if not folder.is_dir():
            raise runlog.UserError(f"--runs {folder}: no such folder; give one that holds runs")
    if not any(find_runs(folder) for folder in args.runs):
        problem = f"--runs {' '.join(map(str, args.runs))}: no run with event files below"
        raise runlog.UserError(f"{problem}; train one first, without --no-tensorboard")
    runlog.check_range(args, "[0, 65535]", "port")


def serve(args: Args, links: Path) -> int:
    """Runs TensorBoard on the links, and adds those of new runs; returns its exit code. Ctrl-C and
    SIGTERM end both."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(links)]
    command += ["--port", str(args.port)]
    if args.bind_all:
        command.append("--bind_all")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    board = subprocess.Popen(command)
    try:
        while board.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                board.wait(SECONDS)
            link_runs(args.runs, links)
    finally:
        if board.poll() is None:
            board.terminate()
        board.wait()
    return board.returncode


def main(args: Args) -> int:
    check(args)
    with tempfile.TemporaryDirectory(prefix="tensorboard-") as folder:
        links = Path(folder)
        try:
            number = link_runs(args.runs, links)
        except OSError as error:
            problem = f"cannot make links in {links} ({reason(error)})"
            remedy = f"use tensorboard --logdir {args.runs[0]}"
            raise runlog.UserError(f"{problem}; {remedy}") from None
        print(f"{number} runs; TensorBoard prints the address of the page", flush=True)
        return serve(args, links)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        sys.exit(main(runlog.parse_args(Args)))
