"""From grids of commands to the processes of a sweep: braces, cells of seeds, run folders (docs/sweeps.md)."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runlog  # noqa: E402

OWN_SCRIPTS = ("sac_continuous", "dqn_atari", "ppo_atari", "pqn_atari")
OWN_SCRIPTS += ("continual_supervised", "function_approximation")
THREAD_CAPS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")


def read_grids(words: Sequence[str], stdin) -> list[str]:
    """The grids of the command line, those of - (a line each, # for comments) among them."""
    lines = [line.strip() for line in stdin] if "-" in words else []
    read = [line for line in lines if line and not line.startswith("#")]
    return [grid for word in words for grid in (read if word == "-" else [word])]


def expand(text: str) -> list[str]:
    """Every combination of the braces in `text`, the first brace varying slowest, as bash does it: {a,b} alternatives,
    empty or nested ones too; {1..10} integers. Other than in bash an alternative may hold spaces, and {a} is a.
    Raises UserError: braces that do not pair up.
    """
    start, depth, cuts = text.find("{"), 0, []
    if "}" in (text[:start] if start >= 0 else text):
        raise runlog.UserError(f"{text}: there is a }} without its {{; balance the braces")
    if start < 0:
        return [text]
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if i == start or depth == 0 or (depth == 1 and text[i] == ","):
            cuts.append(i)
        if depth == 0:
            break
    else:
        raise runlog.UserError(f"{text}: there is a {{ without its }}; balance the braces")
    inner = [text[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    if bounds := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", ",".join(inner)):
        first, last = map(int, bounds.groups())
        middles = [str(x) for x in (range(first, last + 1) if first <= last else range(first, last - 1, -1))]
    else:
        middles = [each for part in inner for each in expand(part)]
    return [text[:start] + middle + rest for middle in middles for rest in expand(text[i + 1 :])]


def load_script(name: str) -> ModuleType:
    """The module whose Args are the script's flags, imported once: its own, or that of the project's script which it
    imports (a file that adds an activation, README). Raises UserError: no such file, or no flags to be found."""
    path = next((p for p in (Path(name), ROOT / name) if p.is_file()), None)
    if path is None or path.suffix != ".py":
        raise runlog.UserError(f"{name}: is no script here; a command begins with one, such as {OWN_SCRIPTS[0]}.py")
    tree = ast.parse(path.read_text())
    module, imported = path.stem, {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
    if not any(isinstance(node, ast.ClassDef) and node.name == "Args" for node in tree.body):
        module = next((own for own in OWN_SCRIPTS if own in imported), None)
        if module is None:
            raise runlog.UserError(f"{name}: has no class Args, and imports none of {', '.join(OWN_SCRIPTS)}")
        path = ROOT / f"{module}.py"
    elif "__main__" not in path.read_text():
        raise runlog.UserError(f'{name}: would run when imported; begin its last part with if __name__ == "__main__":')
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return sys.modules[module]


def planned_runs(module: ModuleType, args) -> list[runlog.Run]:
    """The runs that the script's main makes of these flags (a test holds the two together)."""
    script, own = module.__name__, {}
    if script == "sac_continuous":
        args = runlog.sequence_length(args)
    elif script.endswith("_atari"):
        args = dataclasses.replace(args, env_id=module.atari_game(args.env_id)[0])
    elif script == "continual_supervised":
        own = {"env_id": f"{args.dataset}-{args.tasks}"}
    elif script == "function_approximation":
        runs = []
        for (activation, widths), rate in itertools.product(module.architectures(args), args.learning_rates):
            own = {"env_id": f"regression-{'x'.join(map(str, widths))}-lr{rate:g}", "activation": activation}
            own |= {"widths": widths, "learning_rate": rate}
            runs += runlog.make_runs(args, script, **own).values()
        return runs
    return list(runlog.make_runs(args, script, **own).values())


def parse(module: ModuleType, words: Sequence[str], command: str):
    """The command's flags. Raises UserError, naming the command."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            args = runlog.parse_args(module.Args, words)
    except SystemExit:
        told = said.getvalue().strip().removeprefix("error: ") or "tells its flags and trains nothing"
        raise runlog.UserError(f"{command}: {told}") from None
    for flag in ("fresh", "evaluate", "print_network"):
        if getattr(args, flag, False):
            raise runlog.UserError(f"{command}: --{flag.replace('_', '-')} has no place in a sweep, which resumes runs")
    return args


def split_seed(words: Sequence[str]) -> tuple[list[str], int | None]:
    """The words without `--seed N`, and N; None if there is none or if --num-seeds tells how many."""
    text = [word.replace("_", "-") for word in words]
    if not any(word.split("=")[0] == "--num-seeds" for word in text):
        for i, word in enumerate(text):
            value = word.partition("=")[2] if word.startswith("--seed=") else "".join(words[i + 1 : i + 2])
            if word.split("=")[0] == "--seed" and value.isdigit():
                return [*words[:i], *words[i + 1 + (word == "--seed") :]], int(value)
    return list(words), None


def make_cells(commands: Sequence[str], runs_dir: str | None) -> dict[tuple[str, ...], list[int]]:
    """(script, flag, ...) -> seeds; a command without a seed of its own has none."""
    cells = {}
    for command in commands:
        try:
            script, *words = shlex.split(command)
        except ValueError as error:
            raise runlog.UserError(f"{command}: {error}; balance the quotes") from None
        if re.fullmatch(r"(\S*/)?python[\d.]*", script):
            raise runlog.UserError(f"{command}: leave the interpreter out; begin with the script")
        words, seed = split_seed(words)
        if runs_dir is not None and not any(word.split("=")[0] in ("--runs-dir", "--runs_dir") for word in words):
            words += ["--runs-dir", runs_dir]
        seeds = cells.setdefault((script, *words), [])
        seeds += [] if seed is None else [seed]
    return cells


def group_seeds(seeds: Sequence[int], most: int) -> list[list[int]]:
    """Runs of consecutive seeds, of at most `most`: [1, 2, 3, 7], 2 gives [[1, 2], [3], [7]]."""
    groups = []
    for seed in sorted(set(seeds)):
        if groups and groups[-1][-1] == seed - 1 and len(groups[-1]) < most:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def plan(commands: Sequence[str], runs_dir: str | None, seeds_per_process: int, threads: int) -> list[dict]:
    """The processes of a sweep as the manifest has them (sweep_task). Raises UserError: a wrong command, or a run that
    two processes would train.

    runs_dir: for commands that name none. seeds_per_process: at most; 0 = all. threads: of a process.
    """
    processes, owners = [], {}
    env = dict.fromkeys(THREAD_CAPS, str(threads)) | {"PYTHONUNBUFFERED": "1"}
    common = {"cwd": os.getcwd(), "python": sys.executable, "env": env}
    for (script, *words), seeds in make_cells(commands, runs_dir).items():
        module, parsed = load_script(script), None
        # A script that trains one seed unless told otherwise, and can train several; others get a process for each.
        together = getattr(module.Args, "num_seeds", None) == 1
        for group in group_seeds(seeds, seeds_per_process or len(seeds) if together else 1) or [[]]:
            own = ["--seed", str(group[0])] if group else []
            own += ["--num-seeds", str(len(group))] if len(group) > 1 else []
            if parsed is None:  # once for all seeds of a cell: it takes longer than all the rest
                parsed = parse(module, [*words, *own], shlex.join([script, *words, *own]))
            if getattr(parsed, "env_threads", None) == 0:
                own += ["--env-threads", str(threads)]
            seed = {"seed": group[0]} | ({"num_seeds": len(group)} if together else {}) if group else {}
            runs = planned_runs(module, dataclasses.replace(parsed, **seed))
            argv, folders = [script, *words, *own], [str(run.folder) for run in runs]
            shared = [folder for folder in folders if folder in owners]
            if shared and len(shared) < len(folders):
                told = f"{shlex.join(argv)} and {shlex.join(owners[shared[0]])} share runs, such as {shared[0]}"
                raise runlog.UserError(f"{told}; give every seed once (--num-seeds tells how many a command has)")
            if shared:  # grids overlap
                continue
            owners |= dict.fromkeys(folders, argv)
            label, first, digest = runs[0].name.rsplit("__", 2)
            name = f"{label}__{first}{f'-{group[-1]}' if len(group) > 1 else ''}__{digest}"
            argv[0] = script if Path(script).is_file() else str(ROOT / script)
            processes.append({"id": name, "argv": argv, "runs": folders, **common})
    return processes
